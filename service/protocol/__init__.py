"""What passes between processes: messages, and the tasks that are served."""
