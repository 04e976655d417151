"""Laws that hold for every Learner that fastai accepts: a late round that prunes nothing repeats the dense one, and looking changes
nothing"""
import pytest
from fastai.basics import SGD
from nets import *
from test_gradients import collab,First,made,Penalty,randint,randn,rows,Scaled,SetUp,tabular,Two,with_loss
from test_gradients import kinds as with_chance

pytestmark = pytest.mark.filterwarnings('ignore')

def torchs():
    "torch's own loaders"
    ds = torch.utils.data.TensorDataset(randn(24,8), randint(4,24))
    dl = torch.utils.data.DataLoader
    return dict(dls=DataLoaders(dl(ds, batch_size=8, shuffle=False), dl(ds, batch_size=8), device='cpu'))

def no_valid():
    ds = list(zip(randn(24,8), randint(4,24)))
    return dict(dls=DataLoaders(DataLoader(ds, bs=8), DataLoader([], bs=8), device='cpu'), metrics=[])

kinds = dict(
    plain  = lambda: {},
    vision = lambda: dict(model=conv_bn, dls=data(shape=(1,6,6))),
    lstm   = lambda: dict(model=lstm, dls=data(shape=(5,8))),
    attention = lambda: dict(model=attention, dls=data(shape=(5,8))),
    tabular = tabular,
    collab = collab,
    inputs = lambda: dict(model=Two, dls=rows(randn(32,8), randn(32,8).flip(0), randint(4,32), n_inp=2), cbs=First()),
    loss   = with_loss,
    torchs = torchs,
    no_valid = no_valid,
    scaled = lambda: dict(cbs=[Scaled(), Penalty()]),
    set_up = lambda: dict(cbs=SetUp()))

class NoChance(Callback):
    "No dropout, and the data in their own order"
    order = -1000
    def before_fit(self):
        for m in self.learn.model.modules():
            if isinstance(vars(m).get('p'), float): m.p = 0.
        for dl in self.learn.dls.loaders:
            if hasattr(dl, 'shuffle'): dl.shuffle = False

def ready(kind, rewind_to, **kwargs):
    kw = kinds[kind]()
    cbs = [LotteryCallback(rewind_to=rewind_to), NoChance(), *L(kw.pop('cbs', None))]
    return learner(cbs=cbs, **{**kw, 'opt_func':partial(SGD, mom=0.), **kwargs})

@pytest.mark.parametrize('fit', [Learner.fit, Learner.fit_one_cycle, Learner.fine_tune], ids=lambda f: f.__name__)
@pytest.mark.parametrize('to', ['2it','1ep','5it'])
@pytest.mark.parametrize('kind', kinds)
def test_a_late_round_that_prunes_nothing_repeats_the_dense_round(kind, to, fit):
    learn,seen = ready(kind, to),[]
    class Ends(Callback):
        def after_round(self): seen.append(bits(self.learn.model))
    learn.add_cb(Ends())
    learn.fit_lottery(2, rounds=2, amount=0, fit=fit)
    assert len(seen)==3 and seen[0]==seen[1]==seen[2]

# --- looking

def look(learn):
    "All that only looks"
    lot = learn.lottery
    lot.report()
    lot.competing()
    lot.how_much()
    if lot.rounds:
        lot.ticket()
        repr(lot.rounds)
    if len(learn.dls.valid): learn.evaluate()

class Looks(Callback):
    def after_round(self): look(self.learn)

def play(kind, looks, tmp_path):
    kw = {} if kind=='no_valid' or not looks else dict(eval_every=2)
    learn = made_of(kind)
    if looks:
        learn.add_cb(Looks())
        kw['path'] = tmp_path/'run'
    rs = learn.fit_lottery(2, rounds=2, amount=.4, seed=3, **kw)
    return bits(learn.model),[r['mask_hash'] for r in rs],[r.row.get('train_loss') for r in rs]

def made_of(kind): return made(kind) if kind in with_chance else learner(**kinds[kind]())

@pytest.mark.parametrize('kind', [*with_chance, 'torchs', 'no_valid'])
def test_looking_changes_nothing(kind, tmp_path):
    assert play(kind, False, tmp_path)==play(kind, True, tmp_path)

# --- layers that are frozen in turn

def gan(**kw):
    "fastai's GAN: its trainer freezes the generator while the critic learns, and the other way round"
    from fastai.vision.gan import GANLearner,basic_critic,basic_generator
    set_seed(0)
    ds = list(zip(torch.randn(64, 20), torch.rand(64, 3, 32, 32)))
    dls = DataLoaders.from_dsets(ds[:48], ds[48:], bs=8, device='cpu')
    nets = basic_generator(32, 3, in_sz=20, n_features=16),basic_critic(32, 3, n_features=16)
    learn = GANLearner.wgan(dls, *nets, opt_func=RMSProp, cbs=LotteryCallback(**kw))
    learn.remove_cbs(learn._grab_cbs(ProgressCallback))
    learn.logger = noop
    return learn

class InTurn(Callback):
    "Freezes the first layer in every second batch, and in the last"
    def before_batch(self): self.model[0].requires_grad_(self.iter%2==1 and self.iter<self.n_iter-1)

def played(learn, **kw):
    "The rounds, and what was said of frozen layers"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        rs = learn.fit_lottery(1, rounds=2, amount=.5, seed=0, **kw)
    return rs,[str(o.message) for o in said if 'frozen' in str(o.message)]

def test_a_gan_is_told_whose_layers_a_prune_leaves_out():
    rs,says = played(learn := gan(), fit=Learner.fit, lr=1e-4)
    cold = [n for n,p in learn.model.named_parameters() if n in learn.lottery.masks and not p.requires_grad]
    (said,) = says
    assert cold and all(n in said for n in cold) and 'LotteryCallback(frozen=True)' in said
    assert all(learn.lottery.masks[n].all() for n in cold) and rs[1]['density']>.5
def test_a_gan_is_pruned_as_asked_with_frozen():
    rs,says = played(gan(frozen=True), fit=Learner.fit, lr=1e-4)
    assert not says and [r['density'] for r in rs]==[1.,.5,.25]

def test_layers_that_a_callback_freezes_in_turn():
    rs,(said,) = played(learner(mlp, cbs=[LotteryCallback(), InTurn()]))
    assert '0.weight' in said and 'they have trained' in said
def test_layers_that_never_trained_are_no_news():
    learn = learner(mlp, cbs=LotteryCallback())
    learn.model[0].requires_grad_(False)
    assert not [o for o in played(learn)[1] if 'they have trained' in o]
