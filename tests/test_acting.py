"Does a pruned weight really do nothing, and a kept one something? Read off a forward pass, whatever the class"
import warnings
import pytest,torch
from torch import nn
import torch.nn.functional as F
from torch.nn.utils import parametrizations as P
from fastai.basics import CrossEntropyLossFlat,DataLoader,DataLoaders,Learner,noop,set_seed
from fastai.callback.all import Callback,ProgressCallback
from fastai.text.all import AWD_LSTM,awd_lstm_lm_config,get_language_model
from fastai_lottery.all import *

class Standardised(nn.Conv2d):
    "Weight standardisation, by a class that nobody knows"
    def forward(self, x):
        w = self.weight-self.weight.mean((1,2,3), keepdim=True)
        return F.conv2d(x, w/(w.std((1,2,3), keepdim=True)+1e-5), self.bias, padding=1)

class Centred(nn.Linear):
    def forward(self, x): return F.linear(x, self.weight-self.weight.mean(), self.bias)

class Soft(nn.Linear):
    def forward(self, x): return F.linear(x, self.weight.softmax(1), self.bias)

class Masked(nn.Linear):
    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer('mask', (torch.arange(self.weight.numel()).view_as(self.weight)%2).float())
    def forward(self, x): return F.linear(x, self.weight*self.mask, self.bias)

class Unused(nn.Linear):
    def __init__(self, *args):
        super().__init__(*args)
        self.spare = nn.Linear(4,4)

class Scaled(nn.Linear):
    "Zeros stay zeros: fine"
    def forward(self, x): return F.linear(x, self.weight*.5/self.weight.norm(), self.bias)

class Aside(nn.Linear):
    "A head for training alone, as in googlenet: fine"
    def __init__(self, *args):
        super().__init__(*args)
        self.aux = nn.Linear(self.in_features, self.out_features)
    def forward(self, x): return super().forward(x)+(self.aux(x) if self.training else 0)

class Cell(nn.LSTMCell):
    def forward(self, x): return super().forward(x)[0]

class Noisy(nn.Linear):
    "Mixes noise of its own into what it gives"
    def forward(self, x): return F.linear(torch.randn(len(x), self.in_features), self.weight, self.bias)+x

class Turned(nn.Linear):
    "A matrix turns the weight before it is used"
    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer('turn', torch.linalg.qr(torch.randn(self.out_features, self.out_features))[0])
    def forward(self, x): return F.linear(x, self.turn@self.weight, self.bias)

def half(m):
    "Random masks, on"
    ws = named_weights(m, prunable(m))
    masks = Masks({n:torch.rand_like(w, dtype=torch.float)>.5 for n,w in ws.items()})
    masks.apply_(m)
    return masks

def odd(m, *x):
    df = acting(m, x, half(m))
    return df.but[df.but!=''].to_dict()

bad = dict(
    standardised = (lambda: Standardised(3,4,3), (2,3,5,5), 'pruned weights act'),
    centred = (lambda: Centred(6,5), (2,6), 'pruned weights act'),
    soft    = (lambda: Soft(6,5), (2,6), 'pruned weights act'),
    masked  = (lambda: Masked(6,5), (2,6), 'kept weights are 0 where'),
    turned  = (lambda: Turned(6,5), (2,6), 'pruned weights act'),
    unused  = (lambda: Unused(6,5), (2,6), 'takes no part'))

@pytest.mark.parametrize('make,shape,says', bad.values(), ids=list(bad))
def test_what_has_no_effect_is_found(make, shape, says):
    torch.manual_seed(0)
    found = odd(nn.Sequential(make()), torch.randn(shape))
    assert len(found)==1 and says in next(iter(found.values()))

def lm(): return get_language_model(AWD_LSTM, 30, dict(awd_lstm_lm_config, emb_sz=6, n_hid=8, n_layers=2))
def norms(): return nn.Sequential(P.weight_norm(nn.Linear(16,5)), P.spectral_norm(nn.Linear(5,4)))
def convs(): return nn.Sequential(nn.Conv2d(3,4,3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4,4,3,groups=4))
good = dict(
    scaled = lambda: (Scaled(6,5), torch.randn(2,6)),
    aside  = lambda: (Aside(6,5), torch.randn(2,6)),
    norms  = lambda: (norms(), torch.randn(2,16)),
    lstm   = lambda: (nn.LSTM(4, 5, num_layers=2), torch.randn(3,2,4)),
    gru    = lambda: (nn.GRU(4, 5, bidirectional=True), torch.randn(3,2,4)),
    transformer = lambda: (nn.Transformer(8,2,1,1,16), torch.randn(3,2,8), torch.randn(4,2,8)),
    text   = lambda: (lm(), torch.randint(0,30,(2,5))),
    half   = lambda: (nn.Linear(6,5).bfloat16(), torch.randn(2,6).bfloat16()),
    convs  = lambda: (convs(), torch.randn(2,3,8,8)),
    embedding = lambda: (nn.EmbeddingBag(9,4), torch.randint(0,9,(3,2))),
    bilinear  = lambda: (nn.Bilinear(3,4,5), torch.randn(2,3), torch.randn(2,4)),
    # as many rows in the batch as states: what the first state makes of a weight is as large as the weight
    square_lstm = lambda: (nn.LSTM(4, 5), torch.randn(3,5,4)),
    square_gru  = lambda: (nn.GRU(4, 5), torch.randn(3,5,4)),
    square_rnn  = lambda: (nn.RNN(4, 5, num_layers=2), torch.randn(3,5,4)),
    square_cell = lambda: (Cell(4, 5), torch.randn(5,4)),
    square_text = lambda: (lm(), torch.randint(0,30,(6,5))),
    square_awd  = lambda: (AWD_LSTM(30, 6, 8, 2), torch.randint(0,30,(6,5))),
    noise       = lambda: (Noisy(6, 5), torch.randn(6,5)))

@pytest.mark.parametrize('make', good.values(), ids=list(good))
def test_nothing_is_said_where_all_is_well(make):
    torch.manual_seed(0)
    m,*x = make()
    before = {k:v.clone() for k,v in m.state_dict().items()}
    masks,modes,rng = half(m),[o.training for o in m.modules()],torch.get_rng_state()
    before = {k:v.clone() for k,v in m.state_dict().items()}
    df = acting(m, tuple(x), masks)
    assert (df.but=='').all() and df.zeros.notna().mean()>.7    # a part of a weight cannot be counted
    assert all(torch.equal(v, before[k]) for k,v in m.state_dict().items()) and [o.training for o in m.modules()]==modes
    assert torch.equal(torch.get_rng_state(), rng)

def learner(net, **kw):
    set_seed(0)
    rows = list(zip(torch.randn(16,6), torch.randint(0,2,(16,))))
    learn = Learner(DataLoaders(DataLoader(rows, bs=8), DataLoader(rows, bs=8), device='cpu'), net,
                    loss_func=CrossEntropyLossFlat(),
                    cbs=LotteryCallback(**kw))
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

@pytest.mark.parametrize('verb', [lambda l: l.prune(.5), lambda l: l.fit_lottery(1, rounds=2, amount=.5)],
                         ids=['prune','lottery'])
def test_the_first_prune_warns_once(verb):
    net = nn.Sequential(Centred(6,8), nn.ReLU(), nn.Linear(8,2))
    learn = learner(net)
    with pytest.warns(UserWarning, match=r'competing without effect: 0.weight \(\d+ pruned weights act\)') as seen:
        verb(learn)
    assert sum('without effect' in str(w.message) for w in seen)==1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn.prune(.2)
        learner(nn.Sequential(Centred(6,8), nn.ReLU(), nn.Linear(8,2)), exclude='0.*').prune(.2)
        learner(nn.Sequential(nn.Linear(6,8), nn.ReLU(), nn.Linear(8,2))).prune(.2)

def test_a_net_that_cannot_be_looked_at_is_pruned_all_the_same():
    class Shy(nn.Linear):
        def forward(self, x):
            if not self.training: raise RuntimeError('only for training')
            return super().forward(x)
    learn = learner(Shy(6,2))
    learn.prune(.5)
    says = 'could not be checked on a batch: RuntimeError: only for training'
    with pytest.warns(UserWarning, match=says), pytest.raises(RuntimeError):
        learn.fit(1)    # its validation fails as well
    assert learn.lottery.masks.density==.5

def test_a_batch_that_callbacks_make_is_waited_for_and_they_are_left_alone():
    class Doubled(Callback):
        "The model has twice the inputs"
        seen = 0
        def before_fit(self): Doubled.seen += 1
        def before_batch(self): self.learn.xb = (torch.cat([*self.xb,*self.xb], 1),)
    learn = learner(nn.Sequential(Centred(12,8), nn.ReLU(), nn.Linear(8,2)))
    learn.add_cb(Doubled())
    with pytest.warns(UserWarning, match='without effect: 0.weight') as seen: learn.fit_lottery(1, rounds=2, amount=.5)
    assert Doubled.seen==3 and sum('without effect' in str(w.message) for w in seen)==1

def test_parameters_are_given_by_a_generator():
    net = nn.Sequential(nn.Linear(6,8), nn.ReLU(), nn.Linear(8,2))
    learn = learner(net, include=(p for p in net[0].parameters()))
    for _ in range(2): assert learn.lottery.names()==['0.weight']
    assert learn.lottery.competing().competes.sum()==1

def test_a_warning_that_is_an_error_is_raised_where_it_belongs():
    learn = learner(nn.Sequential(Centred(6,8), nn.ReLU(), nn.Linear(8,2)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(UserWarning, match='without effect'): learn.prune(.5)

class Tokens(nn.Module):
    "A token is what a layer is called with, as CaiT's class token or DETR's queries are"
    def __init__(self):
        super().__init__()
        self.cls_token,self.body,self.head = nn.Parameter(torch.randn(1,6)),nn.Linear(6,6),nn.Linear(6,2)
    def forward(self, x): return self.head(self.body(self.cls_token.expand(len(x), -1))+self.body(x))

def test_a_layer_that_is_called_with_a_parameter_is_counted():
    m = Tokens()
    m.head.weight.requires_grad_(False)
    asked = {n:p.requires_grad for n,p in m.named_parameters()}
    assert flops(m, torch.randn(4,6)).flops['body.weight']==2*2*4*36
    assert {n:p.requires_grad for n,p in m.named_parameters()}==asked
