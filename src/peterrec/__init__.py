"""PeterRec serving: one shared user model, a small patch per task."""
