"""s3mgr: the client of the s3mgrd mount daemon, and the wire types both sides use."""

__version__ = "0.1.0"
