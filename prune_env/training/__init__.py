"""Training, distillation and short finetuning of networks."""
