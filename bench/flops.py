"""Operations of the matrix products that a meta-iteration or a Hessian-vector product of an MLP cannot do without."""

import itertools


def meta_iteration(workload):
    """By the layers or, for a linear head, by the Gram matrix of its features, if that is less."""
    of_task = _by_layers(*workload.sizes, workload.steps, workload.inputs_need_grad)
    if len(workload.widths) == 2:
        of_task = min(of_task, _by_gram(*workload.sizes, workload.inputs_need_grad))
    return workload.tasks * of_task


def hvp(widths, examples):
    """One task's: activations, their gradients, the tangents of both and the product; no gradient of the weights."""
    layers, inner = products(widths, examples)
    return 3 * layers + 5 * inner


def _by_layers(widths, support, query, steps, inputs_need_grad):
    """Each step with its Hessian-vector product, which uses its activations and their gradients again."""
    layers, inner = products(widths, support)
    of_query, inner_of_query = products(widths, query)
    total = steps * (4 * layers + 5 * inner) + 2 * of_query + inner_of_query
    first, first_of_query = layers - inner, of_query - inner_of_query
    return total + (steps * 2 * first + first_of_query if inputs_need_grad else 0)


def _by_gram(widths, support, query, inputs_need_grad):
    """The steps themselves are free."""
    of_support, of_query = products(widths, support)[0], products(widths, query)[0]
    gram = 2 * support**2 * widths[0]
    return 4 * of_support + 2 * of_query + gram + (2 * of_support + of_query + gram if inputs_need_grad else 0)


def products(widths, examples):
    """One task's products with the weights of all layers, and of all but the first."""
    of_layers = [2 * examples * inputs * outputs for inputs, outputs in itertools.pairwise(widths)]
    return sum(of_layers), sum(of_layers[1:])
