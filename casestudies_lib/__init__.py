"""The Training Incident Casebook: five published post-mortems, rebuilt small and put on trial."""

__version__ = "0.1.0"
