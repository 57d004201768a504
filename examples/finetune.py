"""Fine-tune a trained sentence model, in NumPy: see finetuning/README.md."""

try:
    from finetuning.command import main
except ModuleNotFoundError as why:
    raise SystemExit(f'{why}: pip install "multihead[examples]"') from None

if __name__ == "__main__":
    main()
