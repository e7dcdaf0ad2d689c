def step_floor(options, used, steps):
    return None


def ppo_floor(options, model, prompts):
    return None


def sampling_floor(options, model, prompts, length):
    return None
