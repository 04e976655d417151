"What was there before: where a lottery goes on, what a ticket knows, trainings of tickets that stay, pruning by torch"
import warnings
import pytest,torch
from torch import nn
import torch.nn.functional as F
from torch.nn.utils import prune as tp
from fastai.basics import CrossEntropyLossFlat,DataLoader,DataLoaders,L,Learner,accuracy,noop,set_seed
from fastai.callback.all import Callback,ProgressCallback
from fastai_lottery.all import *
from fastai_lottery.rounds import DroppedWarning

def make(cbs=None, seed=0, **kw):
    "A small net on sixty-four rows"
    set_seed(seed)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=g)
    y = (x[:,0]*x[:,1]>0).long()
    rows = list(zip(x, y))
    dls = DataLoaders(DataLoader(rows[:48], bs=8, shuffle=True), DataLoader(rows[48:], bs=16), device='cpu')
    net = nn.Sequential(nn.Linear(6,16), nn.ReLU(), nn.Linear(16,2))
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), metrics=accuracy, lr=.02,
                    cbs=[LotteryCallback(**kw), *L(cbs)])
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def weights(learn): return {n:p.detach().clone() for n,p in learn.model.named_parameters()}
def same(a, b): return a.keys()==b.keys() and all(torch.equal(v, b[k]) for k,v in a.items())
def figures(r): return {k:v for k,v in r.row.items() if k!='seconds'}

# --- a lottery goes on where it is asked to

def test_next_day_a_lottery_goes_on_from_a_ticket(tmp_path):
    one = make()
    whole = one.fit_lottery(2, rounds=3, amount=.4, seed=1)
    t = one.lottery.ticket(2).save(tmp_path/'t', dense=True)
    other = make(seed=5)
    rs = other.fit_lottery(2, rounds=1, amount=.4, seed=1, start=Ticket.load(t))
    assert rs[0]['density']==whole[2]['density'] and rs[1]['kept']==whole[3]['kept']
    other.fit_ticket(Ticket.load(t), 2, seed=1)
    with pytest.warns(DroppedWarning, match="drops 2 rounds in memory; start='rounds'"):
        assert other.fit_lottery(1, rounds=0)[0]['density']==1
    third = make(seed=6)
    third.fit_ticket(Ticket.load(t), 1)
    with pytest.warns(DroppedWarning, match="drops masks of density 0.3594; start='now'"): third.fit_lottery(1, rounds=0)

@pytest.mark.parametrize('path', [False,True])
def test_from_a_ticket_with_a_folder(tmp_path, path):
    one = make()
    one.fit_lottery(1, rounds=2, amount=.4, seed=1)
    t,kw = one.lottery.ticket(1),dict(amount=.3, seed=1, path=tmp_path/'run' if path else None)
    a = make(seed=5).fit_lottery(1, rounds=1, start=t, **kw)
    b = make(seed=6).fit_lottery(1, rounds=2, start=t, **kw)
    assert [r['mask_hash'] for r in a]==[r['mask_hash'] for r in b[:2]] and a[1]['valid_loss']==b[1]['valid_loss']
    if path:
        with pytest.raises(ValueError, match='start was'): make().fit_lottery(1, rounds=2, start=one.lottery.ticket(2), **kw)

def test_the_net_as_it_is_now():
    learn = make()
    learn.fit(1)
    learn.prune(.5, seed=0)
    w,m = weights(learn),learn.lottery.masks
    with warnings.catch_warnings():
        warnings.simplefilter('error', DroppedWarning)
        rs = learn.fit_lottery(1, rounds=1, amount=.5, seed=0, start='now')
    assert rs[0].masks==m and rs[0]['density']==m.density and same({k:rs[0].start[k] for k in w}, w)
    assert rs[1]['kept']==m.n_kept-round(.5*m.n_kept)
    with pytest.raises(ValueError, match="'rounds'.*'now'"): learn.fit_lottery(1, start='then')

def test_weights_that_another_tool_pruned_go_on():
    learn = make()
    with torch.no_grad(): learn.model[0].weight[:,:3] = 0
    learn.keep_zeros()
    rs = learn.fit_lottery(1, rounds=1, amount=.2, start='now')
    assert [r['kept'] for r in rs]==[96-48+32, round(.8*80)] and (learn.model[0].weight[:,:3]==0).all()

def test_a_late_ticket_does_not_know_initial_weights(tmp_path):
    one = make(rewind_to='3it')
    one.fit_lottery(2, rounds=2, amount=.4, seed=1)
    t = Ticket.load(one.lottery.ticket(1).save(tmp_path/'t'))
    other = make(seed=5)
    with pytest.raises(ValueError, match="`criterion`='movement' needs 'w_i'.*3it"):
        other.fit_lottery(1, rounds=1, criterion='movement', start=t)
    with pytest.raises(ValueError, match="`reset`=.* needs 'w_i'"): other.fit_ticket(t, 1, reset=lambda w_i: w_i)
    assert other.lottery.masks is None
    r = one.fit_ticket(t, 1, reset=lambda w_i: w_i, seed=0)
    assert r['density']==t.density
    one.fit_lottery(1, rounds=1, criterion='movement', start=t)

# --- what a ticket knows of its training

arms_before = dict(nothing=lambda l: None, dense=lambda l: l.fit_ticket(l.lottery.ticket(0), 1, seed=3),
                   fit=lambda l: l.fit(1), loaded=lambda l: l.lottery.load(0),
                   other=lambda l: l.fit_ticket(l.lottery.ticket(2), 1, reset='random_reinit', seed=3))
resets_of_trained = dict(keep='keep', w_f=lambda w_f: w_f/2, g=lambda w_k, g: w_k-g, rewind_or_zero='rewind_or_zero',
                         w_i=lambda w_i: w_i)

@pytest.mark.parametrize('reset', resets_of_trained.values(), ids=list(resets_of_trained))
def test_a_reset_does_not_depend_on_the_arm_before(reset):
    learn = make()
    learn.fit_lottery(1, rounds=2, amount=.5, seed=1, keep='all')
    t,res = learn.lottery.ticket(1),[]
    for f in arms_before.values():
        f(learn)
        res.append((figures(learn.fit_ticket(t, 1, reset=reset, seed=2)), weights(learn)))
    for r,w in res[1:]: assert r==res[0][0] and same(w, res[0][1])

def test_keep_goes_on_from_the_trained_net():
    learn = make()
    learn.fit_lottery(2, rounds=1, amount=.5, seed=1)
    w,seen = weights(learn),[]
    class First(Callback):
        def before_fit(self): seen.append(weights(self.learn))
    learn.fit(1)
    learn.fit_ticket(learn.lottery.ticket(), 1, reset='keep', cbs=First())
    assert same(seen[0], w)

def test_a_ticket_carries_its_trained_weights(tmp_path):
    one = make()
    one.fit_lottery(2, rounds=2, amount=.5, seed=1)
    a = one.fit_ticket(one.lottery.ticket(2), 1, reset='keep', seed=2)
    t = Ticket.load(one.lottery.ticket(2, trained=True).save(tmp_path/'t'))
    other = make(seed=4)
    assert figures(other.fit_ticket(t, 1, reset='keep', seed=2))==figures(a) and same(weights(one), weights(other))
    plain = Ticket.load(one.lottery.ticket(2).save(tmp_path/'p'))
    before = weights(other)
    with pytest.raises(ValueError, match="`reset`='keep' needs 'w_f'.*trained=True"): other.fit_ticket(plain, 1, reset='keep')
    with pytest.raises(ValueError, match="needs 'g'"): other.fit_ticket(plain, 1, reset=lambda g: g)
    assert same(weights(other), before)
    with pytest.raises(ValueError, match="needs 'w_f'.*keep='all'"):    # its trained net is not at hand
        another = Ticket(one.lottery.ticket(1).masks, {k:v+1 for k,v in plain.weights.items()}, dict(round=1))
        one.fit_ticket(another, 1, reset='keep')

def test_trained_nets_are_read_from_the_folder(tmp_path):
    learn = make()
    learn.fit_lottery(1, rounds=3, amount=.5, seed=1, path=tmp_path)
    learn.lottery.trained = {}
    t = learn.lottery.ticket(1, trained=True)
    learn.lottery.load(1)
    assert all(torch.equal(t.trained[k], v) for k,v in learn.model.state_dict().items())

def test_a_loss_that_learns_has_no_trained_state_in_a_ticket():
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.s = nn.Parameter(torch.ones(2))
        def forward(self, p, y): return F.cross_entropy(p*self.s, y)
    learn = make()
    learn.loss_func = loss = Loss()
    learn.splitter = lambda m: [list(m.parameters()), list(loss.parameters())]
    learn.fit_lottery(1, rounds=1, amount=.5, seed=1)
    with pytest.raises(ValueError, match="parameters outside the model train"):
        learn.fit_ticket(learn.lottery.ticket(), 1, reset='keep')
    learn.fit_ticket(learn.lottery.ticket(), 1)

# --- a row that stays, and a folder

def test_rows_of_tickets_stay_in_the_report():
    learn = make()
    learn.fit_lottery(1, rounds=1, amount=.5, seed=1)
    arms = {},dict(reset='random_reinit'),dict(mask=shuffle_mask)
    rs = [learn.fit_ticket(learn.lottery.ticket(), 1, seed=2, **kw) for kw in arms]
    df = learn.lottery.report(full=True)
    assert len(df)==5 and df.reset[2:].tolist()==['rewind','random_reinit','rewind'] and df['mask'][4]=='shuffle_mask'
    assert df.valid_loss[2:].tolist()==[r['valid_loss'] for r in rs] and len(learn.lottery.rounds)==2
    learn.fit_lottery(1, rounds=0)
    assert len(learn.lottery.report())==1
    fresh = make(seed=2)
    fresh.fit_ticket(Ticket(rs[0].masks, rs[0].start, {}), 1)
    assert len(fresh.lottery.report())==1

def stop_at(learn, at):
    "Have the training of `learn` die in its `at`th step"
    n = [0]
    def hook(m, x):
        n[0] += m.training
        if m.training and n[0]==at: raise KeyboardInterrupt
    learn.model.register_forward_pre_hook(hook)
    return learn

ways = dict(rewind={}, reinit=dict(reset='random_reinit'), mask=dict(mask=shuffle_mask), held=dict(hold='hold_init'),
            curve=dict(eval_every=4), two=dict(fit=Learner.fine_tune), keep=dict(reset='keep'))

@pytest.mark.parametrize('late', ['init','4it'])
@pytest.mark.parametrize('kw', ways.values(), ids=list(ways))
def test_a_ticket_in_a_folder_goes_on_after_a_kill(tmp_path, kw, late):
    if late!='init' and kw.get('hold'): kw = {}
    one = make(rewind_to=late)
    one.fit_lottery(2, rounds=1, amount=.5, seed=1, keep='all', fit=kw.get('fit', Learner.fit_one_cycle))
    t = Ticket.load(one.lottery.ticket(1, trained=True).save(tmp_path/'t', dense='mask' in kw or 'hold' in kw))
    plain = make(seed=3, rewind_to=late)
    a = plain.fit_ticket(t, 3, seed=2, **kw)
    for at in (1,4,8):
        learn = stop_at(make(seed=at, rewind_to=late), at)
        with pytest.raises(KeyboardInterrupt): learn.fit_ticket(t, 3, seed=2, path=tmp_path/'run', **kw)
    learn = make(seed=4)    # whose own rewind point does not matter
    b = learn.fit_ticket(t, 3, seed=2, path=tmp_path/'run', **kw)
    assert figures(a)==figures(b) and same(weights(plain), weights(learn)) and not (tmp_path/'run'/'epoch.ckpt').exists()
    again = stop_at(make(seed=5), 1)
    c = again.fit_ticket(t, 3, seed=2, path=tmp_path/'run', **kw)    # nothing is trained
    assert figures(c)==figures(b) and same(weights(again), weights(learn)) and again.lottery.masks==learn.lottery.masks
    assert len(again.lottery.report())==1 and (c.curve is None)==(b.curve is None)
    if b.curve is not None: assert c.curve.equals(b.curve)

def test_a_folder_is_of_one_training(tmp_path):
    one = make()
    one.fit_lottery(1, rounds=1, amount=.5, seed=1)
    t = one.lottery.ticket(1)
    one.fit_ticket(t, 1, seed=2, path=tmp_path)
    for what,v in dict(seed=3, mask=shuffle_mask, trial=1, reset='random_reinit', lr_max=.1).items():
        before = weights(one)
        with pytest.raises(ValueError, match=f'{what} was'): one.fit_ticket(t, 1, **{'seed':2, what:v}, path=tmp_path)
        assert same(weights(one), before)
    with pytest.raises(ValueError, match='start was'): one.fit_ticket(one.lottery.ticket(0), 1, seed=2, path=tmp_path)
    with pytest.raises(ValueError, match='was'): one.fit_lottery(1, seed=2, path=tmp_path)

# --- pruning by torch

def torch_pruned():
    learn = make()
    tp.l1_unstructured(learn.model[0], 'weight', amount=.5)
    return learn

def ticket_now(learn): return Ticket(Masks.ones(named_weights(learn.model, ['0.weight_orig','2.weight'])), state(learn.model))
verbs = dict(lottery=lambda l: l.fit_lottery(1), prune=lambda l: l.prune(.2), ticket=lambda l: l.fit_ticket(ticket_now(l), 1))

@pytest.mark.parametrize('verb', verbs.values(), ids=list(verbs))
def test_torchs_own_pruning_is_refused_and_taken_over(verb):
    learn = torch_pruned()
    before = weights(learn)
    says = r"prune is on for 0.weight and keeps 48 weights.*get_submodule\('0'\), 'weight'.*keep_zeros"
    with pytest.raises(ValueError, match=says): verb(learn)
    assert same(weights(learn), before)
    tp.remove(learn.model.get_submodule('0'), 'weight')
    assert sum(learn.keep_zeros().values())==48
    rs = learn.fit_lottery(1, rounds=1, amount=.25, start='now')
    assert rs[0]['kept']==80 and rs[1]['kept']==60

def test_torchs_pruning_of_nothing_is_fine():
    learn = make()
    tp.identity(learn.model[0], 'weight')
    assert learn.fit_lottery(1, rounds=1, amount=.5)[1]['kept']==64

def test_pictures_are_of_the_rounds_alone():
    learn = make()
    learn.fit_lottery(1, rounds=2, amount=.5, seed=1)
    before = learn.lottery.plot().lines[0].get_xydata().tolist()
    learn.fit_ticket(learn.lottery.ticket(1), 1, reset='random_reinit', seed=3)
    assert learn.lottery.plot().lines[0].get_xydata().tolist()==before and len(learn.lottery.report())==4
    learn.lottery.show()
    fresh = make(seed=2)
    fresh.fit_ticket(learn.lottery.ticket(1), 1)
    with pytest.raises(ValueError, match='no rounds yet'): fresh.lottery.plot()
