"""What a client sees: types, inputs, unions and their descriptions. No I/O but through loaders."""
