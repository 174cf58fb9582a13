"""What is shown of a training and is no part of its result: outside the key of the step."""
