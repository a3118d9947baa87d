"""The sub-commands, a module each: `Options`, a dataclass that becomes the command line, and `run(options)`."""
