"""Search what Python's documentation says, by meaning: see sentences/README.md."""

try:
    from sentences.command import main
except ModuleNotFoundError as why:
    raise SystemExit(f'{why}: pip install "multihead[examples]"') from None

if __name__ == "__main__":
    main()
