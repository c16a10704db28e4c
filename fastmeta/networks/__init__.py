"""The networks of the learners' inner loops. `network` says what a learner asks of one; `recognise` finds which one a model is.

mlp, convnet     those with ops of their own (`fused` is what they share)
any_module       every other, by autograd: `chain` is the inner loop and the way back, `meta_gradient` ties it to autograd,
                 `tasks_at_once` runs several tasks by torch.vmap, `unrolled` takes their place under transforms
encoder          what prototypes and heads are made of, by the conv kernels where they know it
users_model      a model with its loss, and what was seen of it; `inner_problem` is what one call solves
batch_norm, task_convolutions    layers that need care in an inner loop
"""
