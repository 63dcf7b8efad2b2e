"""Models: encoders and what stands on top of them; weights in and out.

    encoder      a timm ViT for the store's stacks: made, loaded from whatever a spec may name, exported for plain timm
    vit          the same in training: hidden patches, crops of any size
    weights      the files of timm, Meta and bfp into a ViT
    heads        the projection heads of pretraining
    pooling      the vectors of a session's stacks -> one
    linear       the head of a session: logits of classes, a number or a log hazard
    outputs      what these mean, by the type of the task
    session_model   the model folder of a fine-tuning on sessions: encoder, head, and all that `infer` needs
    encoder_alone   an encoder without a head, and how scans are prepared for it (without torch)
    folders      where in a run's or a model's folder the encoder stands (without torch)

Only tensors and plain values here: no store, no Ray.
"""
