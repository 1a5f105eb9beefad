"""What clarad does with systemd: being watched, being told, handing over. Without it, nothing."""
