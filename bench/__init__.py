"""What clarad costs: measurements against a bare WebSocket server on the same machine.

`python -m bench` runs all of them, `python -m bench turns cancel` those named.
Everything happens on the loopback interface and in temporary directories.
"""
