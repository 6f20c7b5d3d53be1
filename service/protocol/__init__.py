"""What workers and the device process share: messages, served versions and traffic counts."""
