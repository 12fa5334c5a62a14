"""The critic of MMSSL and what it is shown, by themselves."""

import torch

from llmrec_pl.models.adversary import Critic, adversarial_losses, perturbed_rows


def test_a_trained_critic_tells_real_rows_and_has_slopes_of_about_one():
    torch.manual_seed(0)
    critic = Critic(12, 16)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    generated = torch.rand(64, 12)
    for _ in range(300):
        real = perturbed_rows((torch.rand(64, 12) < 0.3).float(), 0.5)
        terms = adversarial_losses(critic, real, generated)
        optimizer.zero_grad()
        (terms.critic + 10 * terms.penalty).backward()
        optimizer.step()
    assert terms.critic.item() < -0.5
    assert terms.penalty.item() < 0.1


def test_perturbed_rows_follow_the_gumbel_distribution():
    torch.manual_seed(0)
    rows = torch.tensor([[1.0, 0.0, 0.0]]).expand(40_000, 3)
    perturbed = perturbed_rows(rows, 0.1)
    torch.testing.assert_close(perturbed.sum(1), torch.ones(40_000))
    # The Gumbel-max trick: the largest entry is drawn from the softmax of the rows.
    share = perturbed.argmax(1).bincount(minlength=3) / 40_000
    torch.testing.assert_close(share, rows[0].softmax(0), rtol=0, atol=0.01)
