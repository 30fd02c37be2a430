"""From text to a trustworthy scaling law for transfer learning."""

__version__ = "0.1.0"
