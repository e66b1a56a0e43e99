"""S3 servers for tests: real ones in processes of their own, and a scripted one."""
