"""Search what Python's documentation says, by meaning: see sentences/README.md."""

from sentences.command import main

if __name__ == "__main__":
    main()
