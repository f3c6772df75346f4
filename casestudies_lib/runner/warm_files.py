"""Names through which a warm process and those who ask it for kernels meet, in a folder of its own."""

SOCKET = "kernels"
READY = "ready"  # appears once it takes requests
UNFIT = "unfit"  # appears with the reason where it will never take any
ADDRESS = "CASEBOOK_WARM"  # variable: the socket of a process that is shared by several
PROVISIONER = "casebook-warm"
