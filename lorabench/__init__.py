"""Which model, fine-tuned with LoRA, classifies my texts best, how long does it take, and does it fit our GPUs?"""

__version__ = "0.1.0"
