"""Pretraining: stacks -> encoder, by DINOv2 self-supervision (Oquab et al. 2023, arXiv 2304.07193).

A student and a teacher share one architecture: a ViT backbone and projection heads. From each stack come two large
crops and some small ones; patches of the large ones are hidden from the student. The teacher, a moving average of the
student, sees the large crops whole. The student learns to predict, in K prototypes,

    the teacher's class token of another crop            dino    (image-level objective)
    the teacher's patch token behind each hidden patch   ibot    (patch-level objective)
    while class tokens of a batch stay spread out        koleo   (regulariser)

One idea a file:

    draws       randomness by seed, step and place in the global batch
    device      what a step needs, on the training device without waiting
    crops       stacks -> crops, on that device
    contrast · natural    what MRI-safe augmentation, and DINOv2's own, do to grey values
    shown       the same as pictures
    masks       which patches are hidden
    targets     the teacher's logits -> probabilities: centres, Sinkhorn-Knopp
    cross_entropy         over many prototypes, a few rows at a time
    dino · ibot · koleo   the losses
    schedules   rate, weight decay, momentum, temperature by step
    optimiser   the rate and decay of each parameter, clipping
    step        one step of training, in the order of the paper, and the state that it changes
    monitors    is it learning, or collapsing?
    work        how hard the device works
    checkpoint  the state to a folder and back
    loop        steps until done, with figures, checkpoints and a way to stop
    probe · session_probe what the encoder has learned of anatomy, of a label of sessions
    tripwire    the same while training: are features getting worse?
    labelled    the stacks that a probe can use

Nothing here knows specs or Ray; the numbers come as plain arguments.
"""
