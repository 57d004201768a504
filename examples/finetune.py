"""Fine-tune a trained sentence model, in NumPy: see finetuning/README.md."""

from finetuning.command import main

if __name__ == "__main__":
    main()
