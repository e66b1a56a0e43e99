"""The process that serves one mount: its entry, its privileges, its control socket."""
