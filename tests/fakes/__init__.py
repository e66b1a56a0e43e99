"""In-memory stand-ins for ports; each behaves as its port promises, and lets a test decide what fails."""
