"Experiments on conv nets with batch norm: two starts beside each other, early birds of channels"
from functools import partial
import pytest,torch
from fastai_lottery.convs import drawn,first_of
from fastai_lottery.experiments import *
from fastai_lottery.experiments import play_main
from fastai_lottery.nets import *
from fastai_lottery.presets import preset
from fastai_lottery.resets import state
from fastai_lottery.rethinking import small_conv
from fastai_lottery.scopes import shuffle_mask

small = partial(small_conv, 4, 6)
prunes = dict(amount=.5, scope='local')

@pytest.fixture
def run(tmp_path):
    "A played lottery of a small net from Glorot's start"
    p = preset('inits-vgg-tiny')
    p = Preset(**{**vars(p), 'model':partial(drawn, small, glorot_), 'settings':{**p.settings, 'n_epoch':1, 'rounds':1}})
    learn = p.learner(device='cpu')
    with learn.no_bar(), learn.no_logging(): return play_main(p, learn, 0, tmp_path/'run', None)

def test_a_net_is_drawn_as_it_is_asked_for_and_anew():
    torch.manual_seed(0)
    m = drawn(partial(resnet_20, 8), kaiming_)
    assert m.init is kaiming_ and abs(m.fc.weight.std().item()-.01)<.003
    old = m.fc.weight.clone()
    m.reset_parameters()
    assert not m.fc.weight.equal(old) and abs(m.fc.weight.std().item()-.01)<.003
    assert drawn(partial(resnet_20, 8), glorot_).fc.weight.std()>.1

def test_the_other_start_leaves_the_run_alone_and_is_trained_once(run):
    before,masks = {n:v.clone() for n,v in state(run.learn.model).items()},run.learn.lottery.masks
    one = partial(first_of, run, 1, small, kaiming_, prunes)
    ticket,f = one(),run.learn.lottery.run_folder/'found'/'start_01'/'rounds.csv'
    stamp = f.stat().st_mtime_ns
    dense,fresh,mixed = one(at=0),one(reset='random_reinit'),one(mask=shuffle_mask)
    assert f.stat().st_mtime_ns==stamp
    assert all(v.equal(before[n]) for n,v in state(run.learn.model).items()) and run.learn.lottery.masks==masks
    assert [o.row['round'] for o in (ticket,dense,fresh,mixed)]==[1]*4
    assert dense.masks.density==1 and ticket.masks==fresh.masks!=mixed.masks
    assert ticket.masks.n_kept==mixed.masks.n_kept==run.ticket(1).masks.n_kept
    assert ticket.ticket.weights['fc.weight'].std()<.02<run.ticket(1).weights['fc.weight'].std()

def test_an_early_bird_stops_and_goes_on_from_its_weights(tmp_path):
    "With a mask that need hardly settle it stops early; all small nets have one architecture"
    pytest.importorskip('torch_pruning', reason='channels need the extra `deploy`')
    df = play_seed(preset('birds-tiny'), 0, tmp_path/'seed', device='cpu')
    last = df[df['round']==1].set_index('arm')
    assert {*last.index}=={'ticket','early_bird','random_kept','scratch'} and last.macs.nunique()==1
    its = df[df.arm=='dense'].iterations.item()
    assert its<last.spent.early_bird<2*its
