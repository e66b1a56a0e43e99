"""One module per command; each defines `command`. Imported when the command is called."""
