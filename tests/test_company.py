"Company: fastai's own callbacks, one by one, in a lottery; loggers that know the round; who may end what; names mistyped"
import contextlib,importlib,io,json,pkgutil,random,subprocess,sys
import fastai.callback,numpy as np,pandas as pd,pytest,torch
from torch import nn
from torch.nn import functional as F
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback,CancelFitException,FetchPredsCallback
from fastai.callback.data import CollectDataCallback
from fastai.callback.fp16 import AMPMode,MixedPrecision
from fastai.callback.hook import ActivationStats,HookCallback
from fastai.callback.mixup import CutMix,MixUp
from fastai.callback.preds import MCDropoutCallback
from fastai.callback.progress import CSVLogger,ProgressCallback,ShowGraphCallback
from fastai.callback.rnn import ModelResetter,RNNCallback,RNNRegularizer
from fastai.callback.schedule import ParamScheduler,SchedCos
from fastai.callback.tracker import EarlyStoppingCallback,ReduceLROnPlateau,SaveModelCallback,TerminateOnNaNCallback
from fastai.callback.training import BnFreeze,GradientAccumulation,GradientClip,ShortEpochCallback
from fastai.learner import Learner,Recorder
from fastai_lottery import scopes
from fastai_lottery.callback import LotteryCallback
from fastai_lottery.core import pick
from fastai_lottery.presets import preset
from fastai_lottery.scopes import as_scope
from fastai_lottery.signals import as_action,as_criterion,as_reset
from nets import bits,data,leaks,learner

pytestmark = pytest.mark.filterwarnings('ignore')

# --- each of fastai's callbacks, with late rewinding, a folder and a kill

class Kill(Callback):
    "Ends the process, as it were, at a batch of a round, or after a round"
    order,at = -50,None
    def before_batch(self):
        if self.training and (self.lottery.round,self.epoch,self.iter)==Kill.at: raise SystemExit
    def after_round(self):
        if self.lottery.round==Kill.at: raise SystemExit

def net(): return nn.Sequential(nn.Linear(8,12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(.2), nn.Linear(12,4))
def image(): return nn.Sequential(nn.Conv2d(1,4,3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16,4))

class Recur(nn.Module):
    "A recurrent net that gives what fastai's `RNNCallback` expects: output, raw outputs, dropped outputs"
    def __init__(self):
        super().__init__()
        self.rnn,self.head,self.state = nn.GRU(4,6,batch_first=True),nn.Linear(6,4),None
    def reset(self): self.state = None
    def forward(self, x):
        o,h = self.rnn(x, self.state if self.training else None)
        if self.training: self.state = h.detach()
        return self.head(o[:,-1]),[o],[F.dropout(o, .1, self.training)]

images,rnns = dict(model=image, shape=(1,6,6)),dict(model=Recur, shape=(5,4))
cases = {
    'nothing':[],
    'Recorder':lambda: [Recorder(train_metrics=True, add_time=False)],
    'TerminateOnNaNCallback':[TerminateOnNaNCallback],
    'SaveModelCallback':[SaveModelCallback],
    'SaveModelCallback every':lambda: [SaveModelCallback(every_epoch=True)],
    'SaveModelCallback end':lambda: [SaveModelCallback(at_end=True)],
    'SaveModelCallback opt':lambda: [SaveModelCallback(with_opt=True)],
    'EarlyStoppingCallback':lambda: [EarlyStoppingCallback('accuracy', patience=3)],
    'ReduceLROnPlateau':lambda: [ReduceLROnPlateau(min_delta=.5)],
    'ShowGraphCallback':[ShowGraphCallback],
    'ProgressCallback':lambda: [ProgressCallback(), ShowGraphCallback()],
    'CSVLogger':[CSVLogger],
    'CSVLogger append':lambda: [CSVLogger(append=True)],
    'MixUp':[MixUp],
    'CutMix':([CutMix], images),
    'ModelResetter':lambda: ([ModelResetter(), RNNCallback(), RNNRegularizer(alpha=2., beta=1.)], rnns),
    'ActivationStats':lambda: [ActivationStats(with_hist=True)],
    'HookCallback':lambda: [HookCallback(hook=lambda m,i,o: o.mean().item())],
    'ShortEpochCallback':lambda: [ShortEpochCallback(.5)],
    'ShortEpochCallback valid':lambda: [ShortEpochCallback(.5, short_valid=True)],
    'GradientAccumulation':lambda: [GradientAccumulation(48)],
    'GradientClip':lambda: [GradientClip(.1)],
    'BnFreeze':[BnFreeze],
    'ChannelsLast':([ChannelsLast], images),
    'MCDropoutCallback':[MCDropoutCallback],
    'MixedPrecision':lambda: [MixedPrecision(amp_mode=AMPMode.BF16)],
    'CollectDataCallback':[CollectDataCallback],
    'FetchPredsCallback':[FetchPredsCallback],
    'ParamScheduler':lambda: [ParamScheduler({'lr':SchedCos(.1, .01)})],
    'many':lambda: [MixUp(), GradientAccumulation(32), GradientClip(.1), SaveModelCallback(),
                    EarlyStoppingCallback(patience=2),
                    CSVLogger(), ReduceLROnPlateau()],
}

# What belongs to no training, is tried with another, or needs a card
elsewhere = ('TrainEvalCallback GatherPredsCallback MixHandler RNNRegularizer RNNCallback TrackerCallback LRFinder '
             'FP16TestCallback NonNativeMixedPrecision ModelToHalf').split()

def test_each_of_fastais_callbacks_is_tried():
    names = set()
    for m in pkgutil.iter_modules(fastai.callback.__path__):
        if m.name in 'all azureml captum comet neptune tensorboard wandb'.split(): continue    # they need packages
        mod = importlib.import_module(f'fastai.callback.{m.name}')
        own = {k:o for k,o in vars(mod).items() if isinstance(o, type) and o.__module__==mod.__name__}
        names |= {k for k,o in own.items() if issubclass(o, Callback) and o is not Callback}
    assert names-set(elsewhere)-{k.split()[0] for k in cases}==set() and len(names)>25

def made(case, path, late):
    cbs = cases[case]() if callable(cases[case]) else cases[case]
    cbs,kw = cbs if isinstance(cbs, tuple) else (cbs,{})
    path.mkdir(exist_ok=True)
    learn = learner(kw.get('model', net), data(kw.get('shape', (8,))), LotteryCallback(rewind_to=late), path=path)
    if case=='Recorder': learn.remove_cb(learn.recorder)
    return learn.add_cbs([Kill, *cbs])

fits = dict(one_cycle=dict(fit=Learner.fit_one_cycle, lr_max=.05), fine_tune=dict(fit=Learner.fine_tune, base_lr=.05))

def play(learn, fit='one_cycle'): return learn.fit_lottery(3, rounds=2, seed=1, path=learn.path/'run', **fits[fit])

def shown(learn):
    "All that a lottery came to, but for the time that it took"
    rows = [{k:v for k,v in r.row.items() if k!='seconds'} for r in learn.lottery.rounds]
    return str(rows),bits(learn.model),[r.masks.hash() for r in learn.lottery.rounds]

def log_of(learn):
    "What `CSVLogger` wrote, if it did, but for the time"
    f = learn.path/'history.csv'
    return pd.read_csv(f).drop(columns='time').to_csv() if f.exists() else None

def killed(new, *ats, fit='one_cycle'):
    "The Learner that `new` makes goes on where another was killed, or several of them, one after another"
    for Kill.at in ats:
        try:
            with pytest.raises(SystemExit): play(new(), fit)
        finally: Kill.at = None
    play(learn := new(), fit)
    return learn

kills = (0,1,1),1,(2,2,0)    # round, epoch, batch; or between two rounds

@pytest.mark.parametrize('late,fit', [('init','one_cycle'), ('6it','fine_tune')])
@pytest.mark.parametrize('case', cases)
def test_a_lottery_with_a_callback_goes_on_after_a_kill(case, late, fit, tmp_path):
    play(whole := made(case, tmp_path/'whole', late), fit)
    assert leaks(whole)==0
    learn = killed(lambda: made(case, tmp_path/'killed', late), *kills, fit=fit)
    assert shown(learn)==shown(whole) and log_of(learn)==log_of(whole)

def making(cb, path):
    def new(n):
        (path/n).mkdir(exist_ok=True)
        return learner(net, cbs=[LotteryCallback, Kill, cb()], path=path/n)
    return new

class Draws(Callback):
    "Draws from a generator that its first fit makes"
    makes = dict(python=lambda: random.Random(0), torch=lambda: torch.Generator().manual_seed(0),
                 numpy=lambda: np.random.default_rng(0), old=lambda: np.random.RandomState(0))
    def __init__(self, kind): self.kind = kind
    def before_fit(self):
        if not hasattr(self, 'dice'): self.dice = self.makes[self.kind]()
    def before_batch(self):
        if not self.training: return
        d = self.dice
        x = torch.rand(1, generator=d) if self.kind=='torch' else d.random_sample() if self.kind=='old' else d.random()
        self.learn.xb = (self.xb[0]*(1+.1*float(x)),)

@pytest.mark.parametrize('kind', Draws.makes)
def test_a_generator_that_the_first_fit_makes_goes_on(kind, tmp_path):
    new = making(lambda: Draws(kind), tmp_path)
    play(whole := new('whole'))
    for i,at in enumerate((0,(2,0,1))): assert shown(killed(lambda: new(str(i)), at))==shown(whole)

class Aux(Callback):
    "Has a net of its own, which a fit makes"
    def before_fit(self):
        if self.anew or not hasattr(self, 'extra'): self.extra = nn.Linear(1, 1)
    def before_batch(self): self.learn.xb = (self.xb[0]*(1+.01*self.extra.weight.detach()),)
class Anew(Aux): anew = True
class Once(Aux): anew = False

def test_a_net_that_each_fit_makes_anew_is_none_to_keep(tmp_path):
    new = making(Anew, tmp_path)
    play(whole := new('whole'))
    assert shown(killed(lambda: new('a'), 0))==shown(whole)

def test_a_net_that_could_not_be_put_back_is_not_taken_for_the_one_before(tmp_path):
    says = 'Once.extra is made in a fit.*make it in `__init__`, or train without `path`'
    with pytest.raises(RuntimeError, match=says): killed(lambda: making(Once, tmp_path)('a'), 0)

# --- who looks on knows the round

def test_round_and_density_are_there_while_a_lottery_runs():
    class Notes(Callback):
        seen = []
        def before_fit(self): self.seen.append((self.lottery.round,round(self.lottery.density, 2)))
        def after_round(self): self.seen.append((self.lottery.round,'over'))
    learn = learner()
    assert learn.lottery.round is None and learn.lottery.density==1
    learn.fit_lottery(1, rounds=1, amount=.5, cbs=Notes())    # those for `fit` alone hear of it, too
    assert Notes.seen==[(0,1.), (0,'over'), (1,.5), (1,'over')] and learn.lottery.round is None
    assert learn.lottery.density==.5
    Notes.seen.clear()
    learn.fit_ticket(learn.lottery.ticket(1), 1, cbs=Notes())
    assert Notes.seen==[(1,.5)]

def test_loggers_get_columns_and_callbacks_the_values_of_a_plain_fit(tmp_path):
    class Reads(Callback):
        order,seen = 70,[]
        def after_epoch(self):
            rec = self.recorder
            self.seen.append((list(rec.metric_names), len(rec.log), len(rec.values[-1])))
    learn = learner(cbs=[LotteryCallback, Reads], path=tmp_path)
    learn.fit_lottery(1, rounds=1)
    names = ['epoch','train_loss','valid_loss','accuracy','round','density','time']
    assert Reads.seen==[(names,7,3)]*2
    assert list(learn.recorder.metric_names)==names[:4]+names[6:]    # for `plot_metrics`

def csv(path): return [o.split(',') for o in (path/'history.csv').read_text().splitlines()]

@pytest.mark.parametrize('fit', fits)
@pytest.mark.parametrize('where', ['learner','fit'])
def test_one_csv_file_holds_all_rounds(where, fit, tmp_path):
    learn = learner(net, cbs=[LotteryCallback]+[CSVLogger]*(where=='learner'), path=tmp_path)
    learn.fit_lottery(2, rounds=2, **fits[fit], **(dict(cbs=CSVLogger()) if where=='fit' else {}))
    head,*rows = csv(tmp_path)
    assert head=='epoch train_loss valid_loss accuracy round density time'.split()
    assert [int(r[4]) for r in rows]==sorted([0,1,2]*(3 if fit=='fine_tune' else 2))
    assert {float(r[5]) for r in rows}=={r.masks.density for r in learn.lottery.rounds}
    learn.remove_cb(CSVLogger).fit(1, cbs=CSVLogger())
    assert csv(tmp_path)[0]==head[:4]+head[6:] and len(csv(tmp_path))==2    # a plain fit is as it was

def test_a_csv_file_that_goes_on(tmp_path):
    def new(): return learner(net, cbs=[LotteryCallback, CSVLogger(append=True)], path=tmp_path)
    new().fit_lottery(1, rounds=1)
    new().fit_lottery(1, rounds=1)
    rows = csv(tmp_path)
    assert [r[0] for r in rows].count('epoch')==1 and [r[4] for r in rows[1:]]==list('0101')
    new().fit(1)
    assert [r[0] for r in csv(tmp_path)].count('epoch')==2    # other columns

def test_a_metric_named_like_a_column(tmp_path):
    def density(pred, y): return .25
    learner(net, metrics=[density], cbs=[LotteryCallback, CSVLogger], path=tmp_path).fit_lottery(1, rounds=0)
    head,row = csv(tmp_path)
    assert head[3:6]==['density','round','lottery_density'] and row[3:6]==['0.25','0','1.0']

def test_lines_of_trackers_begin_with_the_round(tmp_path, capsys):
    cbs = [LotteryCallback, SaveModelCallback(), EarlyStoppingCallback(min_delta=9., patience=2),
           ReduceLROnPlateau(min_delta=9.)]
    learner(net, cbs=cbs, path=tmp_path).fit_lottery(4, rounds=1, amount=.5)
    lines = capsys.readouterr().out.splitlines()
    assert {o[:o.index(': ')] for o in lines}=={'Round 0 (100.0%)','Round 1 (50.0%)'}
    for what in ('Better model','early stopping','reducing lr'): assert sum(what in o for o in lines)>=2

def test_a_graph_on_the_bar_over_rounds(monkeypatch):
    shell = importlib.import_module('IPython.core.interactiveshell')
    shell.InteractiveShell.instance()    # as in a notebook
    fp,room = importlib.import_module('fastprogress.fastprogress'),importlib.import_module('fastai_lottery.display')
    monkeypatch.setattr(room, 'master_bar', fp.NBMasterBar)
    monkeypatch.setattr(room, 'progress_bar', fp.NBProgressBar)
    seen,draw = [],fp.NBMasterBar.update_graph
    def noted(self, *args):
        draw(self, *args)
        seen.append((self.graph_ax.get_legend().get_texts()[0].get_text(), [len(g[0]) for g in args[0]]))
    monkeypatch.setattr(fp.NBMasterBar, 'update_graph', noted)
    learn = learner().add_cbs([ProgressCallback, ShowGraphCallback])
    learn.logger = print
    with contextlib.redirect_stdout(io.StringIO()): learn.fit_lottery(2, rounds=1, amount=.5)
    assert seen==[(f'Round {h}: train',[4*n,n]) for h in ('0 (100.0%)','1 (50.0%)') for n in (1,2)]
    assert isinstance(learn.progress, ProgressCallback)

def test_a_graph_where_there_is_no_bar():
    learn = learner(cbs=[LotteryCallback, ShowGraphCallback])
    assert len(learn.fit_lottery(1, rounds=1, cbs=ShowGraphCallback()))==2 and 'progress' not in vars(learn)

# --- loggers of other packages: `python -m pytest -m extra`, where they are installed

@pytest.mark.extra
def test_tensorboard_has_a_folder_a_round(tmp_path):
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    cb = TensorBoardCallback(log_dir=tmp_path/'tb', trace_model=False, log_preds=False)
    learner(cbs=[LotteryCallback, cb], path=tmp_path).fit_lottery(2, rounds=1, amount=.5)
    for r,d in enumerate((1.,.5)):
        (log := EventAccumulator(str(tmp_path/f'tb/round_{r:02d}'))).Reload()
        assert {'train_loss','valid_loss','accuracy','lr_0'}<=set(log.Tags()['scalars'])
        assert [(s.step,s.value) for s in log.Scalars('density')]==[(4,d),(8,d)]
        assert [s.value for s in log.Scalars('round')]==[r,r]
    assert cb.log_dir==tmp_path/'tb'

@pytest.mark.extra
def test_wandb_logs_the_round(tmp_path, monkeypatch):
    import wandb
    from fastai.callback.wandb import WandbCallback
    monkeypatch.setattr(Learner, 'gather_args',
                        lambda self: {})    # fastai 2.8 with fastcore 2.2 fails there in every fit
    wandb.init(mode='offline', dir=str(tmp_path), project='lottery')
    logged,log = [],wandb.log
    monkeypatch.setattr(wandb, 'log', lambda o,**kw: (logged.append(o), log(o, **kw)))
    learner(cbs=[LotteryCallback, WandbCallback(log_preds=False)], path=tmp_path).fit_lottery(2, rounds=1, amount=.5)
    wandb.finish()
    assert [(o['round'],o['density']) for o in logged if 'round' in o]==[(0,1.)]*2+[(1,.5)]*2

# --- who ends what

events = '''before_fit before_epoch before_train before_batch after_pred after_loss before_backward after_backward before_step
after_step after_batch after_train before_validate after_validate after_epoch after_round'''.split()

class Ends(Callback):
    "Raises `CancelFitException` at the first such event of a round"
    order = -30
    def __init__(self, event, r):
        self.r = r
        setattr(self, event, self.end)
    def end(self):
        if self.lottery.round!=self.r: return
        self.r = None
        raise CancelFitException

@pytest.mark.parametrize('late', ['init','6it'])
@pytest.mark.parametrize('event', events)
def test_cancel_fit_ends_a_training_and_after_a_round_the_lottery(event, late):
    learn = learner(cbs=[LotteryCallback(rewind_to=late), Ends(event, 1)])
    rounds = learn.fit_lottery(3, rounds=2, seed=1)
    its,full = [r['iterations'] for r in rounds],12 if late=='init' else 6
    if event=='after_round': assert its==[12,full]
    else:
        assert its[0]==12 and its[2]==full and its[1]<full
        assert ('train_loss' in rounds[1].row)==(its[1]>0)
    assert leaks(learn)==0 and len(learn.lottery.report())==len(its)

@pytest.mark.parametrize('event', ['before_fit','before_epoch','after_step'])
def test_a_dense_training_that_ends_before_its_first_step(event):
    learn = learner(cbs=[LotteryCallback, Ends(event, 0)])
    assert [r['iterations'] for r in learn.fit_lottery(1, rounds=1)]==[0,4]

def test_a_table_of_rounds_of_which_one_has_no_step(capsys):
    learn = learner(cbs=[LotteryCallback, Ends('before_fit', 1)]).add_cb(ProgressCallback)
    learn.logger = print
    assert len(learn.fit_lottery(1, rounds=2))==3

def test_a_lottery_that_a_callback_ended_goes_on_in_its_folder(tmp_path):
    def new(): return learner(cbs=[LotteryCallback, Ends('after_round', 0)], path=tmp_path)
    assert len(new().fit_lottery(1, rounds=2, seed=1, path=tmp_path/'run'))==1
    assert len(new().fit_lottery(1, rounds=2, seed=1, path=tmp_path/'run'))==3

def test_an_interrupt_keeps_what_there_is():
    class Stop(Callback):
        def before_batch(self):
            if self.lottery.round==1 and self.training: raise KeyboardInterrupt
    learn = learner(cbs=[LotteryCallback, Stop])
    cbs = list(learn.cbs)
    with pytest.raises(KeyboardInterrupt): learn.fit_lottery(1, rounds=2)
    assert len(learn.lottery.rounds)==1 and learn.lottery.round is None and leaks(learn)==0
    assert list(learn.cbs)==cbs and 'progress' not in vars(learn)

# --- names mistyped

def pruned():
    "A Learner that has played no lottery, and its ticket"
    learn = learner()
    learn.fit(1)
    learn.prune(.5)
    return learn,learn.lottery.ticket()

def asked(**kw):
    learn,t = pruned()
    return learn.fit_ticket(t, 1, seed=0, **kw)

wrong = dict(criterion=(as_criterion,'larg_final','large_final'), reset=(as_reset,'rewnd','rewind'),
             mask=(lambda o: asked(mask=o),'shufle_mask','shuffle_mask'),
             hold=(as_action,'hold_int','hold_init'), scope=(lambda o: as_scope(o, []),'globel','global'), preset=(preset,'digts','digits'),
             monitor=(lambda o: learner().fit_lottery(1, tol=.1, monitor=o),'acuracy','accuracy'))

@pytest.mark.parametrize('what', wrong)
def test_a_wrong_name_is_told_the_nearest_first(what):
    f,said,meant = wrong[what]
    with pytest.raises(ValueError) as e: f(said)
    says = str(e.value)
    assert says.startswith('did you mean ') and repr(meant) in says.split('?')[0] and repr(said) in says

def test_a_name_like_no_other():
    with pytest.raises(ValueError, match='^`criterion` should be a function of'): as_criterion('zzzz')
    with pytest.raises(ValueError, match='should be a function'): pick(['large_final'], {'large_final':1}, 'criterion')

@pytest.mark.parametrize('name', ['shuffle_mask','random_mask','erk_mask','inverse_mask'])
def test_a_control_on_the_mask_by_name(name):
    "The same training as by the function of that name"
    learn,t = pruned()
    a,b = (learn.fit_ticket(t, 1, seed=0, mask=o) for o in (name,getattr(scopes, name)))
    assert a['mask']==b['mask']==name and a['mask_hash']==b['mask_hash'] and a['train_loss']==b['train_loss']

@pytest.mark.parametrize('what', ['masks','ticket','zzzz',3])
def test_what_is_no_control_on_the_mask(what):
    "Another ticket's mask has a word of its own"
    learn,t = pruned()
    before = learn.lottery.masks.hash()
    o = dict(masks=t.masks, ticket=t).get(what, what)
    with pytest.raises(ValueError, match='^`mask` should be a function') as e: learn.fit_ticket(t, 1, mask=o)
    assert ('mask_of(ticket)' in str(e.value))==(what in ('masks','ticket')) and learn.lottery.masks.hash()==before

def test_a_typo_on_the_callback():
    lot = learner().lottery
    with pytest.raises(AttributeError, match="did you mean 'report'.*LotteryCallback has no 'reprot'"): lot.reprot()
    with pytest.raises(AttributeError, match="^LotteryCallback has no 'zzzz'"): lot.zzzz()
    assert not hasattr(lot, 'reprot') and lot.n_epoch==1    # what the Learner has, is still found

def test_a_loaded_learner_says_what_an_export_leaves_behind(tmp_path):
    "In a process that has imported none of the rooms"
    learn = learner(nn.Linear(8,4), path=tmp_path)
    learn.fit_lottery(1, rounds=1)
    learn.dls.new_empty = lambda: type(learn.dls)(*[o.new([]) for o in learn.dls.loaders])
    learn.export('l.pkl')
    code = f'''
import json
from fastai.learner import load_learner
lot,said = load_learner({str(tmp_path/'l.pkl')!r}).lottery,{{}}
for k in 'plot report ticket best load load_best plto'.split():
    try: getattr(lot, k)()
    except Exception as e: said[k] = type(e).__name__+': '+str(e)
print(json.dumps(said))'''
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    said = json.loads(out.stdout)
    assert said.pop('plto').startswith("NoSuchVerb: did you mean 'plot'")
    assert len(said)==6 and all(v.startswith('ValueError: this Learner was exported') for v in said.values())

# --- kills before the rewind point

@pytest.mark.parametrize('late', ['1ep','2ep','4it','5it','60%'])
@pytest.mark.parametrize('fit', fits)
@pytest.mark.parametrize('short', [False,True])
def test_a_point_that_lies_behind_a_kill(short, fit, late, tmp_path):
    "In a later fit, or on the border of two epochs"
    case = 'ShortEpochCallback' if short else 'nothing'
    play(whole := made(case, tmp_path/'whole', late), fit)
    assert shown(killed(lambda: made(case, tmp_path/'killed', late), (0,1,1), (0,2,0), fit=fit))==shown(whole)

def test_a_search_for_the_rate_within_a_training(tmp_path):
    "fastai's `lr_find` ends by `CancelFitException`; its fit is no part of a training, and no line of a log"
    def fit(learn, n_epoch):
        learn.lr_find(num_it=6, show_plot=False)
        learn.fit(n_epoch)
    learn = learner(net, cbs=[LotteryCallback, CSVLogger], path=tmp_path)
    rounds = learn.fit_lottery(2, rounds=1, fit=fit)
    assert [r['iterations'] for r in rounds]==[8,8]
    assert [r[5] for r in csv(tmp_path)[1:]]==['1.0']*2+[str(rounds[1].masks.density)]*2
