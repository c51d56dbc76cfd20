"""The part that runs on the microscope. Imports no TensorFlow, no Keras, nothing of `training`."""
