"What a cell shows when its last line is ours: a line, or a small table; what `fit_ticket` prints; the short report"
import html,io,pickle,re
from contextlib import redirect_stdout
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import pandas as pd,pytest
from IPython.core.formatters import DisplayFormatter
import torch
from torch import nn
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastcore.foundation import L
from fastai_lottery.all import *

def learner(**kwargs):
    set_seed(0)
    x = torch.randn(96, 8)
    rows = list(zip(x, x[:,:4].argmax(1)))
    dls = DataLoaders(DataLoader(rows[:64], bs=16), DataLoader(rows[64:], bs=32), device='cpu')
    net = nn.Sequential(nn.Linear(8,16), nn.ReLU(), nn.Linear(16,4))
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=LotteryCallback(**kwargs))
    learn.create_mbar = False    # rows are printed, as in a terminal without a bar
    return learn

def told(f, *args, **kwargs):
    "What `f` gives, and the lines that it prints"
    out = io.StringIO()
    with redirect_stdout(out): res = f(*args, **kwargs)
    return res,[l for l in out.getvalue().splitlines() if l.strip()]

@pytest.fixture(scope='module')
def played():
    learn = learner()
    rs,lines = told(learn.fit_lottery, 1, rounds=2, amount=.5, seed=0)
    return learn,rs,lines

def shown(o):
    "Text and html that a notebook gets for `o`"
    data,_ = DisplayFormatter().format(o)
    return data.get('text/plain'),data.get('text/html')

def cells(h): return [[html.unescape(o) for o in re.findall(r'<t[hd]>(.*?)</t[hd]>', r)] for r in re.findall(r'<tr>(.*?)</tr>', h)]

# --- a lottery

def test_below_its_table_a_lottery_ends_with_a_line(played):
    learn,rs,lines = played
    assert [l.split()[0] for l in lines]==['round','0','1','2']
    text,h = shown(rs)
    assert h is None and '\n' not in text
    assert text.startswith('3 rounds: the last one is Round(2: 48 of 192 weights, density 0.25, accuracy ')

def test_later_rounds_are_a_small_table(played):
    learn,rs,_ = played
    text,h = shown(learn.lottery.rounds)
    head,*rows = cells(h)
    assert head==['round','density','weights','accuracy','rewind point'] and '\n' not in text
    assert rows==[[str(r['round']),f"{100*r['density']:.3g} %",f"{r['kept']:,}",f"{r['accuracy']:.4f}",'init'] for r in rs]
    assert cells(shown(learn.lottery)[1])==[head,*rows] and cells(shown(rs[1:2])[1])==[head,rows[1]]
    assert cells(shown(rs[1])[1])==[head,rows[1]]

def test_rounds_stay_a_list(played):
    learn,rs,_ = played
    assert isinstance(rs, L) and len(rs)==3 and rs==learn.lottery.rounds and rs is not learn.lottery.rounds
    assert [r['round'] for r in rs[1:]]==[1,2] and rs[-1] is learn.lottery.rounds[-1]
    assert [r['kept'] for r in pickle.loads(pickle.dumps(rs))]==[192,96,48]

def test_silent_lotteries_show_the_table():
    learn = learner(rewind_to='2it')
    with learn.no_bar(), learn.no_logging(): rs,lines = told(learn.fit_lottery, 1, rounds=1, seed=0)
    assert not lines and cells(shown(rs)[1])[1][-1]=='2it'

@pytest.mark.parametrize('n,says', [(0,'0 rounds'), (1,'1 round: the last one is Round(0: ')])
def test_few_rounds(played, n, says): assert shown(played[1][:n])[0].startswith(says)

def test_the_callback_says_where_it_stands(played):
    assert repr(LotteryCallback('2ep'))=="LotteryCallback(rewind_to '2ep': no rounds)"
    assert repr(played[0].lottery)=="LotteryCallback(rewind_to 'init': 3 rounds, now at density 0.25)"
    assert shown(LotteryCallback())[1] is None

# --- tickets and masks

def test_a_ticket_and_masks(played, tmp_path):
    learn,rs,_ = played
    t = learn.lottery.ticket(1)
    head,row = cells(shown(t)[1])
    want = dict(round='1', density='50 %', weights='96 of 192', reset='rewind', accuracy=f"{rs[1]['accuracy']:.4f}")
    assert dict(zip(head, row))=={**want, 'rewind point':'init'}
    assert cells(shown(Ticket.load(t.save(tmp_path/'t')))[1])==[head,row]
    head,*rows = cells(shown(t.masks)[1])
    assert head==['layer','kept','weights','density'] and [r[0] for r in rows]==['0.weight','2.weight','all']
    assert [int(r[1]) for r in rows[:2]]==[int(m.sum()) for m in t.masks.values()] and rows[2][1:]==['96','192','50 %']

def test_a_table_of_many_layers_is_cut():
    ms = Masks({f'<{i}>':torch.ones(2).bool() for i in range(100)})
    rows = cells(shown(ms)[1])
    assert len(rows)<=18 and ['… 85 more','','',''] in rows and rows[-1][:3]==['all','200','200'] and rows[1][0]=='<0>'
    assert '<0>' not in shown(ms)[1], 'names are no tags'

# --- a ticket that is trained

def test_fit_ticket_shows_its_row(played):
    learn = played[0]
    r,lines = told(learn.fit_ticket, learn.lottery.ticket(1), 1, seed=0, reset='random_reinit', mask=shuffle_mask)
    head,row = lines
    assert head.split()==['round','reset','mask','density','train_loss','valid_loss','accuracy']
    assert row.split()[:4]==['1','random_reinit','shuffle_mask','50.0%'] and row.split()[-1]==f"{r['accuracy']:.4f}"
    text,h = shown(r)
    assert h is None and '\n' not in text and text.endswith('reset random_reinit, mask shuffle_mask)')
    r,(head,row) = told(learn.fit_ticket, learn.lottery.ticket(1), 1, seed=0)
    assert head.split()[:2]==['round','density'], 'what a plain ticket has is not said'
    assert r['valid_loss']==learn.lottery.rounds[1]['valid_loss']

# --- the report

def test_the_report_is_short(played):
    learn = learner()
    with learn.no_bar(), learn.no_logging(): learn.fit_lottery(1, rounds=1, seed=0, eval_every=2, test_dl=learn.dls[1])
    short,full = learn.lottery.report(),learn.lottery.report(full=True)
    assert list(short)==['round','density','kept','valid_loss','accuracy','test_accuracy','es_iteration']
    assert {*short}<{*full} and {'prunable','train_loss','test_loss','es_accuracy','iterations','seconds','mask_hash'}<={*full}
    pd.testing.assert_frame_equal(short, full[list(short)])
    assert short.attrs==full.attrs==dict(monitor='accuracy', better='higher is better')
    with learn.no_bar(), learn.no_logging():
        for i in range(2):
            learn.fit_ticket(learn.lottery.ticket(), 1, seed=0, trial=i)
            assert [o for o in ('reset','mask','trial') if o in learn.lottery.report()]==['reset','mask','trial'][:2+i]

def test_a_report_without_validation_has_the_training_loss():
    learn = learner()
    learn.dls = DataLoaders(learn.dls.train, DataLoader([], bs=1), device='cpu')
    with learn.no_bar(), learn.no_logging(): learn.fit_lottery(1, rounds=0, seed=0)
    assert 'train_loss' in learn.lottery.report()

# --- pictures

pictures = dict(plot=lambda l: l.plot(), show=lambda l: l.show(), mask=plot_mask, density=lambda l: plot_density(l.rounds),
                overlap=lambda l: plot_overlap(overlap_table(l.rounds)), moments=lambda l: plot_moments({'a':torch.ones(2)}))

@pytest.mark.parametrize('f', pictures.values(), ids=list(pictures))
def test_a_picture_shows_nothing_else(played, f):
    ax = f(played[0].lottery)
    assert shown(ax)==(None,None)
    assert len(pickle.dumps(getattr(ax, 'figure', None) or ax[0].figure))>1000
    plt.close('all')
