"""The part that runs on the microscope. Imports no TensorFlow, no Keras, nothing of `training`."""

import os

# FFmpeg and OpenCV write complaints about unreadable files to the terminal; ours is the one
# sentence that the user gets. Both read this once, when cv2 is first imported: by any module here.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
