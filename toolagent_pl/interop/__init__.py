"""Other people's formats: Gymnasium, Stable-Baselines3, ONNX, torch.export, texts for language models, OpenEnv."""
