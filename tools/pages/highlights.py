"""The rows that a newcomer sees first: workloads of the bench in plain words, those at 1x included."""

FIRST = {  # the table of README.md
    "MAML Conv4-32 28x28x1, 8 tasks K5, 5-way 1-shot, 15 queries each": "MAML on Conv4, 5 inner steps, 8 tasks",
    "mlp_meta_loss W1 sinusoid MAML K5, 25 tasks, 10 + 10 examples": "MAML on sinusoids, 5 inner steps, 25 tasks",
    "proto_loss fwd+bwd euclidean T1 Q75 N5 D64": "ProtoNet's loss and gradients, 75 queries, 5 ways, 64 features",
    "mlp_hvp W6 softmax regression 32 x (25, 640, 5)": "Hessian-vector product, softmax regression, 32 tasks",
    "ProtoNet Conv4-32, 4 tasks, 5-way 1-shot, 15 queries each": "ProtoNet on Conv4, whole gradient, 4 tasks",
}
HIGHLIGHTS = FIRST | {  # the picture of README.md
    "MAML Conv4-32 84x84x3, 4 tasks K1, 5-way 1-shot, 15 queries each": "MAML on Conv4, 84 x 84 images, 1 inner step, 4 tasks",
    "mlp_meta_loss W2 sinusoid Meta-SGD K5, 25 tasks, 10 + 10 examples": "Meta-SGD on sinusoids, 5 inner steps, 25 tasks",
    "proto_loss fwd+bwd euclidean T32 Q75 N5 D640": "ProtoNet's loss and gradients, 32 tasks, 640 features",
    "matching_log_probs fwd+bwd T32 Q75 S25 N5 D64": "matching networks' head and gradients, 32 tasks",
    "sgd_step fwd+bwd Conv4-64 x 32 tasks, scalar rate": "SGD step of Conv4 and its gradient, 32 tasks",
}


def rows_of(found, workloads):
    """The rows of these workloads on the most threads, in their order. ValueError where one was not raced."""
    most = max(row["threads"] for row in found["rows"])
    rows = {row["workload"]: row for row in found["rows"] if row["threads"] == most}
    if missing := [workload for workload in workloads if workload not in rows]:
        raise ValueError(f"highlights: every workload must have been raced, got none of {missing}")
    return [rows[workload] for workload in workloads]
