"What `fit_ticket` holds pruned weights at: the ticket's values, another action's, and those under another mask"
import contextlib
import pytest
from nets import *

def lottery(rewind_to='init', seed=0, **kwargs):
    learn = learner(drop_bn, seed=seed, cbs=LotteryCallback(rewind_to=rewind_to))
    learn.fit_lottery(2, 2, amount=.4, seed=1, **kwargs)
    return learn
def ws(learn): return {n:w.detach().clone() for n,w in named_weights(learn.model, learn.lottery.masks).items()}
def at(learn, masks, values):
    w = ws(learn)
    return all(torch.equal(w[n][~m], values[n][~m]) for n,m in masks.items())

@pytest.mark.parametrize('to', ['init','3it'])
@pytest.mark.parametrize('mask', [None, shuffle_mask])
def test_hold_init_is_the_initial_value_not_the_rewind_point(to, mask):
    learn = lottery(to)
    t,w_i = learn.lottery.ticket(),learn.lottery.w_i
    r = learn.fit_ticket(t, 2, seed=1, mask=mask, hold='hold_init')
    assert at(learn, r.masks, w_i) and (to=='init' or not at(learn, r.masks, t.weights))
    assert (r.masks==t.masks)==(mask is None)

def test_a_late_ticket_elsewhere_has_no_initial_values(tmp_path):
    t = lottery('3it').lottery.ticket()
    t.save(tmp_path/'t', dense=True)
    t = Ticket.load(tmp_path/'t')
    for learn in (learner(drop_bn, seed=5), lottery('3it', seed=5)):
        for again in range(2):      # the first call leaves nothing that would make it seem its own
            before = bits(learn.model)
            with pytest.raises(ValueError, match="'hold_init' needs 'w_i', but this ticket was rewound to '3it'.*known are w_k, m, gen"):
                learn.fit_ticket(t, 2, hold='hold_init')
            assert bits(learn.model)==before
            learn.fit_ticket(t, 2, hold=lambda w_k: w_k)

def test_what_a_ticket_does_not_know():
    learn = lottery()
    with pytest.raises(ValueError, match="'hold_init_or_zero' needs 'w_f'"):
        learn.fit_ticket(learn.lottery.ticket(), 1, hold='hold_init_or_zero')

@pytest.mark.parametrize('to', ['init','3it'])
def test_another_mask_on_a_held_ticket_is_held_by_the_same_action(to):
    learn = lottery(to, hold='hold_init')
    t,w_i = learn.lottery.ticket(),learn.lottery.w_i
    for mask in (shuffle_mask, random_mask):
        r = learn.fit_ticket(t, 2, seed=1, mask=mask)
        assert at(learn, r.masks, w_i) and r.masks!=t.masks and r['density']==t.density
    r = learn.fit_ticket(t, 2, seed=1)
    assert at(learn, t.masks, t.held) and r['density']==t.density

@pytest.mark.parametrize('hold', ['hold_init_or_zero', lambda w_i: w_i/2])
def test_another_mask_where_the_action_cannot_tell(hold):
    learn = lottery(hold=hold)
    t = learn.lottery.ticket()
    before = bits(learn.model)
    with pytest.raises(ValueError, match="give `hold=` with `mask=`|needs 'w_f'"): learn.fit_ticket(t, 1, mask=shuffle_mask)
    assert bits(learn.model)==before
    r = learn.fit_ticket(t, 1, mask=shuffle_mask, hold=lambda w_k: w_k/2)
    assert at(learn, r.masks, {n:w/2 for n,w in t.weights.items()})

def test_the_action_goes_with_the_new_ticket():
    learn = lottery(hold='hold_zero')
    t = learn.lottery.ticket()
    new = learn.fit_ticket(t, 1, hold='hold_init').ticket
    r = learn.fit_ticket(new, 1, mask=shuffle_mask)
    assert new.meta['hold']=='hold_init' and at(learn, r.masks, learn.lottery.w_i)

# --- what is shown while it plays

@pytest.mark.parametrize('quiet', ['no_bar','no_logging',None])
def test_quiet_when_asked(quiet, capsys):
    "Either of fastai's two contexts is enough; without them rounds are counted as rounds"
    learn = Learner(data(), mlp(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=LotteryCallback())
    with getattr(learn, quiet)() if quiet else contextlib.nullcontext(): learn.fit_lottery(1, rounds=1, seed=0)
    out = capsys.readouterr().out
    if quiet: assert out==''
    else: assert 'valid_loss' in out and 'Round 0/1' in out and 'Epoch' not in out
