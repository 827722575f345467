"""``python -m foundry_sdk``: the same as the command ``foundry``."""

from foundry_sdk.cli.main import main

if __name__ == "__main__":
    main()
