"""Cost that grows as the work grows: what a checkpoint writes of lists that only grow, tables that are added to,
rounds that are read later. Nothing here is timed: counts of what is written and read are"""
import contextlib,pickle,shutil
from collections import defaultdict
import numpy as np,pandas as pd,pytest,torch
import fastai_lottery.chain as chain,fastai_lottery.take_up as take_up
from fastai.callback.schedule import ParamScheduler
from fastai.learner import Recorder
from fastai_lottery.carried import from_plain
from fastai_lottery.chain import History,Log
from fastai_lottery.checkpoints import *
from fastai_lottery.rounds import *
from fastai_lottery.tables import append_rows,read_rows,read_written,row_digest,whole_lines
from nets import *
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]

# --- lists of callbacks

class Lists(Callback):
    "Grows lists in many ways, and some that do more than grow; a loss that depends on all of them"
    def __init__(self):
        self.floats,self.tensors,self.own,self.texts,self.pairs,self.gone = [],[],L(),[],[],[]
        self.named,self.free,self.window,self.edited,self.written = dict(a=[], n=0, b=[]),defaultdict(list),[],[],[]
    def after_batch(self):
        if not self.training: return
        v = float(self.loss)
        self.floats.append(v)
        self.tensors.append(self.loss.detach().clone())
        self.own.append(np.float32(v))
        self.texts.append(f'{v:.3f}')
        self.pairs.append([v, {'at':self.train_iter}])
        self.named['a'].append(v)
        self.named['n'] += 1
        self.free['x'].append(v)
        self.window = [*self.window, v][-5:]
        self.edited.append(v)
        self.edited[0] = v
        self.written.append(self.loss.detach().clone())
        self.written[0].add_(1.)
        if self.train_iter%7==0: self.gone = []
        self.gone.append(v)
    def after_loss(self):
        if not self.training: return
        s = sum(self.floats[-3:])+sum(map(float, self.tensors[-3:]))+sum(map(float, self.own))+len(self.texts)+sum(p[0] for p in self.pairs)
        s += sum(self.named['a'])+len(self.named['b'])+self.named['n']+sum(self.free['x'])+sum(self.window)+sum(self.edited[:2])
        s += float(self.written[0]) if self.written else 0
        self.learn.loss_grad = self.loss_grad*(1+(s+sum(self.gone))/5000)

class Halt(Callback):
    order,at = 1000,None
    def after_epoch(self):
        if self.epoch==Halt.at: raise KeyboardInterrupt

def told(o): return float(o) if torch.is_tensor(o) or isinstance(o, np.generic) else o
def lists_of(cb): return {k:str([told(o) for o in v]) for k,v in vars(cb).items() if isinstance(v, (list,L))}

def play(path=None, halt=None, fit=Learner.fit_one_cycle, n=4, rounds=0, cbs=(), **kw):
    learn = learner(cbs=[LotteryCallback(), Lists(), Halt(), *cbs])
    Halt.at = halt
    with contextlib.suppress(KeyboardInterrupt), learn.no_bar(), learn.no_logging():
        learn.fit_lottery(n, rounds=rounds, fit=fit, seed=0, path=path, **kw)
    return learn

def ends_of(learn):
    cb,rec = learn.lists,learn.recorder
    own = lists_of(cb),str(cb.named),str(dict(cb.free))
    return bits(learn.model),own,[float(o) for o in rec.losses],[list(o) for o in rec.values],rec.lrs

fine = lambda l,n,**kw: l.fine_tune(n, freeze_epochs=2, **kw)
fine.__name__ = 'fine'
ways = dict(cycle=Learner.fit_one_cycle, flat=Learner.fit, two=fine)

@pytest.fixture(scope='module')
def wholes(): return {k:ends_of(play(fit=f)) for k,f in ways.items()}

@pytest.mark.parametrize('at', [0,1,2])
@pytest.mark.parametrize('way', ways)
def test_a_kill_after_any_epoch_loses_no_item(way, at, wholes, tmp_path):
    play(tmp_path/'run', halt=at+1, fit=ways[way])    # after the checkpoint of epoch `at`
    assert (tmp_path/'run'/'epoch.ckpt').exists() and (tmp_path/'run'/'epoch.0.log').stat().st_size>0
    assert ends_of(play(tmp_path/'run', fit=ways[way]))==wholes[way]
    assert not list((tmp_path/'run').glob('epoch.*'))

def test_killed_again_and_again(wholes, tmp_path):
    "Each process begins a log of its own, and the checkpoint keeps the one that it needs"
    for at in (1,2,3): play(tmp_path/'run', halt=at)
    assert ends_of(play(tmp_path/'run'))==wholes['cycle']

def test_without_halt(tmp_path, wholes): assert ends_of(play(tmp_path/'run'))==wholes['cycle']

def gained(learn, n=6, **kw):
    "What each of the checkpoints of a training writes of lists, by the names of these"
    res = []
    class See(Callback):
        order = 1001
        def before_fit(self): self.h = History()
        def after_epoch(self):
            cbs = [cb for cb in self.learn.cbs if cb is not self]
            d = take_checkpoint(self.learn, See, self.h)
            new = {(type(cbs[i]).__name__,k,m):d['gained'].get(no, (None,[])) for i,k,m,no,*_ in d['grown']}
            res.append({k:(n,from_plain(v)) for k,(n,v) in new.items()})
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(n, cbs=See(), **kw)
    return res

def test_what_is_written_does_not_grow():
    steps = len(learner().dls.train)
    for i,d in enumerate(gained(learner(cbs=[Lists()]))):
        grow = {('Recorder','lrs',None), ('Recorder','losses',None), ('ParamScheduler','hps','lr'), ('ParamScheduler','hps','mom'),
                ('Lists','floats',None), ('Lists','tensors',None), ('Lists','own',None), ('Lists','texts',None), ('Lists','named','a'),
                ('Lists','free','x')}
        assert grow<=d.keys() and {('Recorder','iters',None),('Recorder','values',None)}<=d.keys()
        assert all(d[k][0]==i*steps and len(d[k][1])==steps for k in grow)
        assert all(d['Recorder',k,None][0]==i and len(d['Recorder',k,None][1])==1 for k in ('iters','values'))

def test_lists_that_do_more_are_written_whole():
    last = gained(learner(cbs=[Lists()]))[-1]
    assert not last.keys()&{('Lists',k,None) for k in 'window edited written pairs gone'.split()}

def test_a_parameter_in_a_list_is_no_item():
    "Its value moves behind the list's back"
    class Scale(Callback):
        def __init__(self): self.all = []
        def after_batch(self):
            self.all.append(self.model.scale.data)
    learn = learner(cbs=[Scale()])
    learn.model.scale = nn.Parameter(torch.tensor(1.))
    learn.create_opt()
    assert not any('all' in k for d in gained(learn, 2) for k in d)

def test_a_recorder_of_ones_own_is_looked_at():
    "Who inherits from fastai's may do more than it"
    class Smooth(Recorder):
        def after_epoch(self):
            super().after_epoch()
            self.lrs[0] = 7.+self.epoch
    learn = learner(cbs=[])
    learn.remove_cb(Recorder)
    learn.add_cb(Smooth())
    assert not any(k[1]=='lrs' for k in gained(learn, 3)[-1])

# --- the log

def log_of(d): return next(d.glob('epoch.?.log'))

def cut(f): f.write_bytes(f.read_bytes()[:-5])
def flip(f):
    b = bytearray(f.read_bytes())
    b[len(b)//2] ^= 1
    f.write_bytes(bytes(b))
def more(f): f.write_bytes(f.read_bytes()+b'half a piece')

@pytest.mark.parametrize('damage', [cut,flip,lambda f: f.unlink()], ids=['cut','flip','gone'])
def test_a_log_that_is_damaged_costs_the_round(damage, wholes, tmp_path):
    play(tmp_path/'run', halt=2)
    damage(log_of(tmp_path/'run'))
    with pytest.warns(UserWarning, match='without its log, which is missing or damaged; its round starts again'):
        assert ends_of(play(tmp_path/'run'))==wholes['cycle']

def test_what_a_kill_left_behind_the_checkpoint_is_cut_off(wholes, tmp_path):
    play(tmp_path/'run', halt=2)
    more(log_of(tmp_path/'run'))
    assert ends_of(play(tmp_path/'run'))==wholes['cycle']
    log = Log(tmp_path)
    name,size,_ = log.add({0:(0,[1,2])}, True)
    more(tmp_path/name)
    assert log.add({0:(2,[3])}, False)[1]==(tmp_path/name).stat().st_size>size

def test_a_log_of_another_name_is_refused(tmp_path):
    write_checkpoint(tmp_path/'c', dict(cbs=[], grown=[], log=('../other',0,'')))
    with pytest.raises(ValueError, match="is damaged.*its log is '../other'"): read_checkpoint(tmp_path/'c')

@pytest.mark.parametrize('wrong', [7,'x',[(0,)],[(5,'a',None,0,1,False)],[(0,'a',None,0,1)]], ids=str)
def test_places_that_no_checkpoint_has(wrong, tmp_path):
    log = Log(tmp_path)
    about = log.add({0:(0,[1.])}, True)
    write_checkpoint(tmp_path/'c', dict(cbs=[('A',{})], grown=wrong, log=about))
    with pytest.raises(ValueError, match='is damaged'): read_checkpoint(tmp_path/'c')

# --- tables

def row(k, **kw): return dict(arm='a', round=k, accuracy=.1*k, **kw)

def test_a_row_is_added_and_the_rest_is_not_written(tmp_path):
    f,rows = tmp_path/'t.csv',[]
    append_rows(f, rows, [row(0)])
    ino,head = f.stat().st_ino,f.read_bytes()
    for k in range(1, 4): append_rows(f, rows, [row(k)])
    assert f.stat().st_ino==ino and f.read_bytes().startswith(head) and read_written(f)['round'].tolist()==[0,1,2,3]

def test_added_is_as_written_whole(tmp_path):
    a,b,rows = tmp_path/'a.csv',tmp_path/'b.csv',[]
    new = [row(k, text='x,"y"', n=k, gone=None, hash='00e1') for k in range(5)]
    for o in new: append_rows(a, rows, [o])
    append_rows(b, [], new)
    assert a.read_bytes()==b.read_bytes()

def test_a_new_column_writes_the_whole(tmp_path):
    f,rows = tmp_path/'t.csv',[]
    for o in (row(0), row(1, more=3), row(2)): append_rows(f, rows, [o])
    assert read_rows(f).more.isna().tolist()==[True,False,True]

@pytest.mark.parametrize('n', range(1, 30, 4))
def test_a_torn_last_line_is_none(n, tmp_path):
    f,rows = tmp_path/'t.csv',[]
    for k in range(3): append_rows(f, rows, [row(k, text='two\nlines "quoted"')])
    (tmp_path/'tables.json').write_text('{"t.csv": 2}')    # the kill came before the third was counted
    f.write_bytes(f.read_bytes()[:-n])
    assert read_written(f)['round'].tolist()==[0,1]
    append_rows(f, rows[:2], [row(2, text='again')])
    assert read_written(f)['round'].tolist()==[0,1,2] and read_written(f).text[2]=='again'

@pytest.mark.parametrize('n', [1,5,12,19,20,21,22,23,24,30,40])
def test_rows_that_a_kill_left_without_their_fellows(n, tmp_path):
    f,rows = tmp_path/'t.csv',[]
    append_rows(f, rows, [row(0, of=1)])
    append_rows(f, rows, [row(1, of=2), row(1, of=2)])
    (tmp_path/'tables.json').write_text('{"t.csv": 1}')
    b = f.read_bytes()
    assert len(b)-n>b.index(b'\na,1')
    f.write_bytes(b[:-n])
    assert read_written(f)['round'].tolist()==[0]

def test_rows_that_were_counted_and_lost_are_missed(tmp_path):
    f,rows = tmp_path/'t.csv',[]
    for k in range(3): append_rows(f, rows, [row(k)])
    f.write_bytes(f.read_bytes()[:-4])
    with pytest.raises(ValueError, match='of 3 rows it has 2'): read_written(f)

figures = ['nan','','NA','5','1e3','1_000','inf','true','None','-0.0',' 5',True,None,np.float64(.1),7,float('nan')]
@pytest.mark.parametrize('v', figures, ids=repr)
def test_a_figure_of_any_kind_is_read_as_it_was_written(v, tmp_path):
    f = tmp_path/'t.csv'
    append_rows(f, [], [row(0, figure=v), row(1, figure=.5)])
    read_rows(f)
    append_rows(tmp_path/'u.csv', [], [row(0, figure=v)])
    read_rows(tmp_path/'u.csv')

def test_a_full_disk_leaves_the_table_as_it_was(tmp_path, monkeypatch):
    import fastai_lottery.tables as tables
    f,rows = tmp_path/'t.csv',[]
    append_rows(f, rows, [row(0)])
    was = f.read_bytes()
    def full(fd): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(tables.os, 'fsync', full)
    with pytest.raises(OSError, match='t.csv'): append_rows(f, rows, [row(1)])
    assert f.read_bytes()==was and len(rows)==1

# --- rounds that are read later

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    d = tmp_path_factory.mktemp('run')/'run'
    learn = play(d, n=1, rounds=4, eval_every=2)
    return d,learn.lottery.rounds

def read_counts(monkeypatch):
    n,old = [],take_up.read_ticket
    monkeypatch.setattr(take_up, 'read_ticket', lambda f,*a: (n.append(f.parent.name), old(f, *a))[1])
    return n

def test_only_the_first_and_the_last_round_are_read(run, monkeypatch, tmp_path):
    d,whole = run
    n = read_counts(monkeypatch)
    again = play(shutil.copytree(d, tmp_path/'run'), n=1, rounds=4, eval_every=2).lottery
    assert n==['round_00','round_04'] and again.report(full=True).drop(columns='seconds').equals(
        pd.DataFrame([r.row for r in whole]).drop(columns='seconds'))
    for k in (2,2,1,3):
        assert again.rounds[k].masks==whole[k].masks and again.ticket(k).digest()==whole[k].ticket.digest()
        assert again.rounds[k].curve.equals(whole[k].curve) and again.rounds[k].held==whole[k].held
    assert n==['round_00','round_04','round_02','round_01','round_03']
    again.load(1)

def test_a_round_that_was_not_read_can_be_copied(run, tmp_path):
    d,whole = run
    rounds = play(shutil.copytree(d, tmp_path/'run'), n=1, rounds=4, eval_every=2).lottery.rounds
    assert pickle.loads(pickle.dumps(rounds[2])).masks==deepcopy(rounds[3]).masks|whole[2].masks==whole[2].masks

files = ['ticket.safetensors','curve.csv','weights.safetensors']
@pytest.mark.parametrize('f', files)
@pytest.mark.parametrize('how', ['flip','other'])
def test_damage_is_found_when_a_round_is_asked_for(f, how, run, tmp_path):
    "As strictly as when it was read at once; the rest of the run goes on"
    d,_ = run
    to = shutil.copytree(d, tmp_path/'run')
    if how=='other': shutil.copy(d/'round_03'/f, to/'round_02'/f)
    else: flip(to/'round_02'/f)
    lot = play(to, n=1, rounds=5, eval_every=2).lottery
    assert len(lot.rounds)==6 and lot.rounds[3].masks.n_kept==lot.rounds[3]['kept']
    if (f,how)==('weights.safetensors','flip'):
        with pytest.raises(ValueError, match='round_02.*damaged'): lot.load(2)
        return
    with pytest.raises(ValueError, match='round_02|for round 2'): lot.rounds[2].masks

@pytest.mark.parametrize('f', files[::2])
def test_a_file_that_is_gone_is_missed_at_once(f, run, tmp_path):
    to = shutil.copytree(run[0], tmp_path/'run')
    (to/'round_02'/f).unlink()
    with pytest.raises(ValueError, match='round_02.*missing|no file.*round_02'): play(to, n=1, rounds=4, eval_every=2)

def test_a_torn_table_of_rounds(run, tmp_path):
    "The kill came while the row was added: the round is played again"
    d,whole = run
    to = shutil.copytree(d, tmp_path/'run')
    (to/'rounds.csv').write_bytes((to/'rounds.csv').read_bytes()[:-9])
    again = play(to, n=1, rounds=4, eval_every=2).lottery.rounds
    assert [r.masks.hash() for r in again]==[r.masks.hash() for r in whole]
    assert pd.read_csv(to/'rounds.csv')['round'].tolist()==[0,1,2,3,4]

def test_rounds_of_a_net_that_was_shrunk_stay_readable(run, tmp_path):
    d,whole = run
    learn = play(shutil.copytree(d, tmp_path/'run'), n=1, rounds=4, eval_every=2)
    learn.model = nn.Linear(3, 3)
    assert learn.lottery.rounds[1].masks==whole[1].masks
