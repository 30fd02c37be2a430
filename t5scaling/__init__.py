"""From text to a trustworthy scaling law for transfer learning."""

import os

__version__ = "0.1.0"

# Before etils decides: where TensorFlow is installed it would open gs:// by it, and training is to
# stay without.
os.environ.setdefault("EPATH_USE_TF", "false")
