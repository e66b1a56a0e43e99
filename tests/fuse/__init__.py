"""Tests of the process side: kernel connections, workers, takeover."""
