"""What makes S3 follow the changes: uploads, copies and deletes, in the background, taken up after a crash."""
