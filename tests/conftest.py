"""For all tests: TensorFlow's own log stays quiet, whichever test imports it first; it quotes labels."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
