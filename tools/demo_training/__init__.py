"""What tools/train_demo_model.py makes the demo model of."""
