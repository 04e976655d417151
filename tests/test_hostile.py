"""Files that come from others: nothing in them runs, names another file, writes elsewhere or reaches the terminal raw, and a file that is
whole and wrong is one `ValueError` that names it"""
import contextlib,importlib,inspect,io,json,os,pickle,pkgutil,shutil,warnings
from pathlib import Path
import pytest
import fastai.callback
from wrong import *
from fastai.callback.core import GatherPredsCallback
from fastai_lottery.chain import Log
from fastai_lottery.tables import append_rows,read_rows
from fastai_lottery.checkpoints import callback_state,put_from_file,read_checkpoint,write_checkpoint
from fastai_lottery.cli import main
from safetensors.torch import save_file
from fastai_lottery.files import digest_of,locked,shown,read_label
from fastai_lottery.sweeps import play
from fastai_lottery.trust import texts_in
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]

# --- code

class Bomb:
    "A pickle that leaves a file where it was opened"
    def __init__(self, f): self.f = str(f)
    def __reduce__(self): return Path.touch,(Path(self.f),)

def all_callbacks():
    "Every callback of fastai that can be imported here"
    for m in pkgutil.iter_modules(fastai.callback.__path__, 'fastai.callback.'):
        with contextlib.suppress(ImportError): importlib.import_module(m.name)
    def below(c): return {c}.union(*map(below, c.__subclasses__()))
    return sorted((c for c in below(Callback) if c.__module__.startswith('fastai.')), key=lambda c: c.__name__)

general = {'self','args','kwargs'}

def made(c):
    "A callback of class `c`, as its constructor makes it where it needs nothing"
    with contextlib.suppress(Exception): return c()
    cb = c.__new__(c)
    vars(cb).update({k:None for k in inspect.signature(c.__init__).parameters if k not in general})
    return cb

@pytest.mark.parametrize('c', all_callbacks(), ids=lambda c: c.__name__)
def test_no_callback_of_fastai_is_told_a_file(c):
    "What its constructor was given stays, whatever a file says; and no text of a file is put into anything"
    cb,evil = made(c),'/evil/path'
    was,given = dict(vars(cb)),{k for o in c.__mro__ if '__init__' in vars(o) for k in inspect.signature(o.__init__).parameters}-general
    some = [{'#L':[evil]}, {'#set':[evil]}, {'#deque':([evil],None)}, {'#vars':{'fname':evil}}]
    for v in (evil, [evil], {'a':evil}, *some, True, 7, 'evil'):
        names = {*was, *given, *'learn after_fit _save path model_dir last_saved_path new'.split()}
        put_from_file(cb, {k:v for k in names})
        for k in given: assert vars(cb).get(k) is was.get(k), f'{k} was given to the constructor'
        assert 'learn' not in vars(cb) or vars(cb)['learn'] is was.get('learn')
        assert not any(evil in texts_in(o) or 'evil' in texts_in(o) for o in vars(cb).values())
        assert callable(getattr(cb, 'after_fit', print))

def hostile(d, evil):
    "The run's checkpoint with `evil` as every text, and in every place where none was"
    def bad(v): return evil if isinstance(v, str) or v is None else not v if isinstance(v, bool) else v
    ckpt = read_checkpoint(f := d/'epoch.ckpt')
    for n,vs in ckpt['learn']['cbs']:
        vs.update({k:bad(v) for k,v in vs.items()})
        more = 'fname save_preds save_targs path model_dir last_saved_path log_dir file tmp_p'
        vs.update({k:evil for k in more.split()})
        if n=='SaveModelCallback': vs.update(every_epoch=False, at_end=False, with_opt=True)
    for vs in ckpt['learn']['params']['modules']: vs.update(path=evil, fname=evil, forward=evil)
    write_checkpoint(f, ckpt)

writers = dict(save=lambda: SaveModelCallback(fname='mine'),
               each=lambda: SaveModelCallback(fname='mine', every_epoch=True),
               end=lambda: SaveModelCallback(fname='mine', at_end=True), csv=lambda: CSVLogger('mine.csv'),
               append=lambda: CSVLogger('mine.csv', append=True), reduce=lambda: ReduceLROnPlateau(),
               early=lambda: EarlyStoppingCallback(patience=9), tensorboard='TensorBoardCallback', wandb='WandbCallback')

def installed(name, d):
    "How to make the callback `name` of fastai, whose library is an extra"
    c = next(c for c in all_callbacks() if c.__name__==name)
    asked = dict(log_dir=d/'logs', trace_model=False, log_preds=False)
    return lambda: c(**{k:v for k,v in asked.items() if k in inspect.signature(c.__init__).parameters})

def offline(d, monkeypatch):
    "W&B without a network; fastai's callback fails in every fit with the fastcore of today, but for this"
    import wandb
    monkeypatch.setattr(Learner, 'gather_args', lambda self: {})
    wandb.init(mode='offline', dir=str(d), project='lottery')

extra = [pytest.param(n, marks=pytest.mark.extra) if isinstance(f, str) else n for n,f in writers.items()]
@pytest.mark.parametrize('name', extra)
def test_a_hostile_checkpoint(name, tmp_path, monkeypatch):
    "It is resumed with a callback that writes or reads files: nothing is opened, nothing is overwritten, and the bits are the same"
    new = writers[name]
    if isinstance(new, str): new = installed(new, tmp_path)
    if name=='wandb': offline(tmp_path, monkeypatch)
    play = partial(alone, new)
    whole = play(tmp_path/'whole'/'run')
    evil,safe,theirs = set_up(tmp_path)
    was = theirs()
    for i,said in enumerate((str(evil), '../theirs/model', str(safe))):
        d = tmp_path/f'stopped_{i}'/'run'
        with contextlib.suppress(KeyboardInterrupt): play(d, halt=1)
        hostile(d, said)
        try: assert play(d).equals(whole)
        except (ValueError,RuntimeError) as e: assert 'could' in str(e) or str(d) in str(e), e
        assert theirs()==was and not was[0]

def set_up(d):
    "Files of somebody else, among them a pickle that leaves a trace when it is opened; and how they are"
    (d/'theirs').mkdir()
    evil,safe,fired = d/'theirs'/'model',d/'theirs'/'model.csv',d/'fired'
    torch.save(Bomb(fired), f'{evil}.pth')
    for f in (evil,safe): f.write_text('mine')
    return evil,safe,lambda: [fired.exists(), *(f.read_bytes() for f in (evil,safe,evil.with_suffix('.pth')))]

def alone(new, d, halt=None):
    "A lottery in the folder `d` with a callback of its own; what it showed"
    learn = lone(d.parent, [new(), Halt()])
    Halt.at = halt
    with learn.no_bar(), contextlib.redirect_stdout(io.StringIO()):
        learn.fit_lottery(3, 1, fit=Learner.fit, lr=.01, seed=0, path=d)
    return learn.lottery.report(full=True).drop(columns='seconds')

def lone(path, cbs):
    torch.manual_seed(0)
    cbs = [LotteryCallback(), *cbs]
    return Learner(loaders(), model(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=cbs, path=path)

def test_text_of_ones_own_callback():
    "Words go on; what could be a path is an error for who uses it, and not before"
    class Mine(Callback):
        def __init__(self, where='here', p=.5):
            self.where,self.p,self.phase,self.names,self.last = where,p,'warm',['a'],None
    cb = Mine()
    put_from_file(cb, dict(where='/evil', p=.7, phase='cold', names=['a','b'], last='done'))
    assert (cb.where,cb.p,cb.phase,cb.names,cb.last)==('here',.7,'cold',['a','b'],'done')
    put_from_file(cb, dict(phase='../x', names=['/etc/x'], last='C:x'))
    for k in ('phase','names','last'):
        with pytest.raises(RuntimeError, match=f'Mine.{k} is text that could name a file'): len(getattr(cb, k))

def test_modules_and_optimizers():
    "A number that a module was given may move, its text may not; an optimizer has the hyper-parameters that it has"
    m = nn.Conv1d(2, 2, 1, padding_mode='zeros')
    put_from_file(m, dict(padding_mode='circular', stride=(1,), forward='x', _parameters={}, training=False))
    for k,v in dict(new='/x', stride=1, groups=[1]).items():
        with pytest.raises(ValueError, match=f'Conv1d.{k} is'): put_from_file(m, {k:v})
    assert m.padding_mode=='zeros' and m.stride==(1,) and m(torch.ones(1,2,4)).shape==(1,2,4)

# --- links

@pytest.fixture(scope='module')
def played(tmp_path_factory): return replicate(tmp_path_factory.mktemp('lab')/'run')

def report(d):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        rc = main(['report', str(d)])
    return rc,out.getvalue(),err.getvalue()

def test_the_report_writes_through_no_link(played, tmp_path):
    d,mine = shutil.copytree(played, tmp_path/'run'),tmp_path/'mine'
    mine.write_text('important')
    for f in ('results.csv','measures.csv','lottery.png'): (d/f).symlink_to(mine)
    rc,out,err = report(d)
    assert rc==0, err
    assert mine.read_text()=='important'
    for f in ('results.csv','measures.csv','lottery.png'): assert not (d/f).is_symlink() and (d/f).stat().st_size>20

def test_a_run_writes_through_no_link(tmp_path):
    mine = tmp_path/'mine'
    mine.write_text('important')
    d = stopped(tmp_path/'run')
    for f in ('rounds.csv','epoch.ckpt','run.json'):
        shutil.move(d/f, tmp_path/f)
        (d/f).symlink_to(tmp_path/f)
    was = {f:(tmp_path/f).read_bytes() for f in ('rounds.csv','epoch.ckpt','run.json')}
    go_on(d)
    assert all((tmp_path/f).read_bytes()==b for f,b in was.items())

@pytest.mark.parametrize('how', ['symlink_to','hardlink_to'])
def test_rows_and_logs_are_added_through_no_link(how, tmp_path):
    "A link in the place of a file that is added to is replaced"
    (mine := tmp_path/'mine').write_text('important')
    log = Log(tmp_path)
    getattr(tmp_path/'epoch.0.log', how)(mine)
    log.add({0:(0,[1])}, True)
    f,rows = tmp_path/'t.csv',[]
    append_rows(f, rows, [dict(arm='a', round=0)])
    shutil.move(f, tmp_path/'table')
    getattr(f, how)(tmp_path/'table')
    was = (tmp_path/'table').read_bytes()
    append_rows(f, rows, [dict(arm='a', round=1)])
    assert mine.read_text()=='important' and (tmp_path/'table').read_bytes()==was and len(read_rows(f))==2

def test_a_log_that_became_a_link(tmp_path):
    log,mine = Log(tmp_path),tmp_path/'mine'
    log.add({0:(0,[1])}, True)
    shutil.move(tmp_path/'epoch.0.log', mine)
    was = mine.read_bytes()
    (tmp_path/'epoch.0.log').symlink_to(mine)
    with pytest.raises(OSError, match='is a link to another file'): log.add({0:(1,[2])}, False)
    assert mine.read_bytes()==was

def test_a_round_that_is_a_link(tmp_path):
    d = tmp_path/'run'
    d.mkdir()
    (tmp_path/'mine').mkdir()
    (d/'round_00').symlink_to(tmp_path/'mine')
    with pytest.raises(OSError, match='is a link to another folder'): go_on(d)
    assert not list((tmp_path/'mine').iterdir())

@pytest.mark.parametrize('how', ['symlink_to','hardlink_to'])
def test_a_lock_that_is_a_link(how, tmp_path):
    (tmp_path/'mine').write_text('important')
    getattr(tmp_path/'.run.lock', how)(tmp_path/'mine')
    with pytest.raises(OSError, match='cannot write .*run.lock'), locked(tmp_path): pass
    assert (tmp_path/'mine').read_text()=='important'

@pytest.mark.parametrize('f',
                         ['chance/round_00','chance/round_00/weights.safetensors','chance/init.safetensors','chance'])
def test_a_lottery_beside_another_writes_through_no_link(f, played, tmp_path):
    "A lottery whose dense round is that of another gets a copy of it"
    d,mine = shutil.copytree(played, tmp_path/'run')/'seed_00',tmp_path/'mine'
    shutil.rmtree(d/'chance')
    (mine if '.' not in f else tmp_path).mkdir(exist_ok=True)
    if '.' in f: mine.write_text('important')
    (d/f).parent.mkdir(parents=True, exist_ok=True)
    (d/f).symlink_to(mine)
    with contextlib.nullcontext() if '.' in f else pytest.raises(OSError, match='is a link to another folder'):
        assert len(play_seed(lab, 0, d))==len(play_seed(lab, 0, played/'seed_00'))
    assert mine.read_text()=='important' if '.' in f else not list(mine.iterdir())

def test_a_seed_that_is_a_link(tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'seed_01').symlink_to(tmp_path/'mine')
    with pytest.raises(OSError, match='seed_01.* is a link to another folder'):
        for _ in play('one-shot-tiny', tmp_path/'run', replicates=2, jobs=1): pass
    assert not list((tmp_path/'mine').iterdir())

@pytest.mark.parametrize('make', [os.mkdir, getattr(os, 'mkfifo', os.mkdir)])
def test_a_lock_that_is_no_file(make, tmp_path):
    "Who asked a pipe who has the lock waited for ever"
    make(tmp_path/'.run.lock')
    with pytest.raises(OSError, match='cannot write .*run.lock.*it is no file'), locked(tmp_path): pass

def test_a_table_of_a_replicate_that_is_no_file(played, tmp_path):
    "Of a folder that somebody sent, with a device or a pipe in it"
    for i,f in enumerate('play.json rounds.csv tables.json round_00/ticket.safetensors measures.csv'.split()):
        f = f if i==0 else f'seed_00/{f}'
        d = shutil.copytree(played, tmp_path/f'run_{i}')
        (d/f).unlink()
        (d/f).symlink_to(os.devnull)
        rc,out,err = report(d)
        assert rc==1 and 'it is no file' in err and f in err

def test_a_pipe_in_place_of_a_file(run, tmp_path):
    "Nobody waits for what never comes"
    if not hasattr(os, 'mkfifo'): pytest.skip('no pipes here')
    in_rounds = [f'round_01/{o}' for o in 'ticket.safetensors weights.safetensors curve.csv callbacks.ckpt'.split()]
    for i,f in enumerate([*'run.json epoch.ckpt rounds.csv init.safetensors round_00/place.ckpt'.split(), *in_rounds]):
        d = shutil.copytree(run, tmp_path/f'run_{i}')
        (d/f).unlink()
        os.mkfifo(d/f)
        with pytest.raises(ValueError, match='it is no file|is missing or damaged'): go_on(d)

# --- the terminal

def test_nothing_reaches_the_terminal_raw(played, tmp_path):
    d = shutil.copytree(played, tmp_path/'run\x1b]0;owned\x07')
    (d/'seed_00'/'chance').rename(d/'seed_00'/'arm\x1b[2J$\\bad{\u202e')
    rc,out,err = report(d)
    assert rc==0 and 'arm\\x1b[2J' in out, err
    assert not any(c in out+err for c in '\x1b\x07\u202e')
    (d/'seed_00'/'rounds.csv').write_text('\x1b[2J')
    rc,out,err = report(d)
    assert rc==1 and 'run\\x1b]0;owned' in err and not any(c in out+err for c in '\x1b\x07')

def test_names_of_tensors_are_shown_escaped(tmp_path):
    bad = 'a\x1b[2Jb.weight'
    ts = {f'mask/{bad}':torch.ones(2,2).bool(), f'weight/{bad}':torch.ones(2,2)}
    for meta in (dict(), dict(names=[bad]), dict(names=['x'])):
        f = save_tensors(tmp_path/'t', ts, meta)
        with pytest.raises(ValueError) as e: Ticket.load(f)
        assert '\x1b' not in str(e.value)
    t = Ticket(Masks({bad:torch.ones(2,2).bool()}), {bad:torch.ones(2,2)}, {})
    with pytest.raises(ValueError) as e: t.check(model())
    assert '\x1b' not in str(e.value)
    assert '\x1b' not in repr(Ticket(t.masks, t.weights, dict(rewind_to='\x1b', how='\x1b')))
    assert shown('ä ☃\u00a0\t\x1b\u202e')=='ä ☃\u00a0\\t\\x1b\\u202e'

# --- wrong content

@pytest.mark.parametrize('head', [{}, dict(meta='[]'), dict(meta='{"a":'+'9'*5000+'}'), dict(meta='{"a":NaN}x')])
def test_a_file_of_tensors_without_a_label(head, tmp_path):
    "Its digest is right"
    ts = dict(w=torch.ones(2))
    save_file(ts, tmp_path/'t.safetensors',
              dict(head, format='fastai_lottery ticket 1', sha256=digest_of(ts, head.get('meta', ''))))
    with pytest.raises(ValueError, match='the label of .*t.safetensors.* is damaged'): load_tensors(tmp_path/'t')

right = lambda: (dict(w=torch.ones(2,3).bool()),dict(w=torch.ones(2,3)))
said = dict(names=['w'], kept=6, prunable=6, density=1.)

@pytest.mark.parametrize('what,change', dict(
    list_=lambda m,w,l: (m, w, []), null=lambda m,w,l: (m, w, {**l, 'names':None}), deep=lambda m,w,l: (m, w, {**l, 'x':deep(900)}),
    ints=lambda m,w,l: (m, dict(w=w['w'].long()), l), complex_=lambda m,w,l: (m, dict(w=w['w'].to(torch.complex64)), l),
    empty=lambda m,w,l: (dict(w=torch.ones(0,3).bool()), dict(w=torch.ones(0,3)), {**l, 'kept':0, 'prunable':0}),
    bools=lambda m,w,l: (dict(w=torch.ones(2,3)), w, l), place=lambda m,w,l: (m, w, {**l, 'rewind_to':'3it', 'place':dict(its='x')}),
    point=lambda m,w,l: (m, w, {**l, 'rewind_to':['3it']}), hold=lambda m,w,l: (m, w, {**l, 'hold':[1]}),
    epochs=lambda m,w,l: (m, w, {**l, 'n_epoch':-1}), names=lambda m,w,l: (m, w, {**l, 'names':[['w']]})).items())
def test_a_ticket_of_wrong_content(what, change, tmp_path):
    m,w,l = change(*right(), dict(said, mask_hash=Masks(right()[0]).hash()))
    if what in ('empty','bools'): pass
    f = save_tensors(tmp_path/'t', {**{f'mask/{k}':v for k,v in m.items()}, **{f'weight/{k}':v for k,v in w.items()}},
                     l)
    with pytest.raises(ValueError, match='t.safetensors'): Ticket.load(f)

@pytest.fixture(scope='module')
def run(tmp_path_factory): return stopped(tmp_path_factory.mktemp('wrong')/'run')

@pytest.mark.parametrize('first', range(0, 120, 20))
def test_wrong_content_in_a_run(first, run, tmp_path):
    "Each of some wrong files, see `wrong.py`: the run goes on, or there is one error that names a file"
    bad = []
    for n in range(first, first+20):
        f,says = spoilt(run, tmp_path/f'run_{n}', n)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            bad.append(tried(go_on, tmp_path/f'run_{n}', f, f'{says} [{n}]'))
    assert not any(bad), '\n'.join(filter(None, bad))

def rewritten(f, r):
    write,says = tensors(f, r)
    write()
    return says

@pytest.mark.parametrize('first', range(0, 30, 15))
def test_wrong_content_in_a_ticket(first, run, tmp_path):
    bad = []
    for n in range(first, first+15):
        f = shutil.copytree(run, tmp_path/f'run_{n}')/'round_01'/'ticket.safetensors'
        try: says = rewritten(f, random.Random(n))
        except (TypeError,ValueError,RecursionError,AttributeError): continue    # JSON has no such thing
        bad.append(tried(train, tmp_path/f'run_{n}', f, f'{says} [{n}]'))
    assert not any(bad), '\n'.join(filter(None, bad))

def use_replicate(d):
    rc,out,err = report(d)
    assert '\x1b' not in out+err
    if rc and str(d) not in err: raise TypeError(err)
    play_seed(lab, 0, d/'seed_00')

@pytest.mark.parametrize('first', range(0, 40, 20))
def test_wrong_content_in_a_replicate(first, played, tmp_path):
    bad = []
    for n in range(first, first+20):
        f,says = spoilt(played, tmp_path/f'run_{n}', n)
        bad.append(tried(use_replicate, tmp_path/f'run_{n}', f, f'{says} [{n}]'))
    assert not any(bad), '\n'.join(filter(None, bad))

# Found by `bench_hostile.py`
def set_at(o, v, *at):
    for k in at[:-1]: o = o[k]
    if v is Gone: del o[at[-1]]
    else: o[at[-1]] = v

def cb_at(d, name): return next(i for i,(n,_) in enumerate(d['learn']['cbs']) if n==name)

found = dict(
    nested=lambda d: set_at(d, deep(60), 'learn', 'opt', 'state', 4, 'grad_avg'),
    shape=lambda d: set_at(d, torch.empty(0), 'learn', 'opt', 'state', 1, 'grad_avg'),
    nan=lambda d: d['learn']['opt']['state'][3]['sqr_avg'].fill_(math.nan),
    step=lambda d: set_at(d, math.nan, 'learn', 'opt', 'state', 3, 'step'),
    fewer=lambda d: set_at(d, Gone, 'learn', 'opt', 'state', 5), no_dict=lambda d: set_at(d, [1], 'learn', 'opt', 'state', 3),
    value=lambda d: set_at(d, ['a'], 'learn', 'cbs', cb_at(d, 'Recorder'), 1, 'values', 0, '#L', 0),
    rate=lambda d: set_at(d, '', 'learn', 'cbs', cb_at(d, 'Recorder'), 1, 'lrs', 0),
    best=lambda d: set_at(d, {'a':1}, 'learn', 'cbs', cb_at(d, 'Watch'), 1, 'best'),
    smoothing=lambda d: [o.update(label_smoothing=3) for o in d['learn']['params']['modules'] if 'label_smoothing' in o],
    axis=lambda d: [o.update(axis=1.5) for o in d['learn']['params']['modules'] if 'axis' in o])

@pytest.mark.parametrize('change', found.values(), ids=found)
def test_a_checkpoint_of_wrong_content(change, run, tmp_path):
    "What is noticed only when it is used is told with the file's name as well"
    d = shutil.copytree(run, tmp_path/'run')
    ckpt = read_checkpoint(f := d/'epoch.ckpt')
    change(ckpt)
    write_checkpoint(f, ckpt)
    with pytest.raises(ValueError, match='epoch.ckpt'): go_on(d)

def test_what_callbacks_carried_of_wrong_content(run, tmp_path):
    d = shutil.copytree(run, tmp_path/'run')
    (d/'epoch.ckpt').unlink()
    ckpt = read_checkpoint(f := d/'round_01'/'callbacks.ckpt')
    ckpt['cbs'][[n for n,_ in ckpt['cbs']].index('Count')][1]['n'] = ''
    write_checkpoint(f, ckpt)
    with pytest.raises(ValueError, match='Count.n is of another kind.*callbacks.ckpt'): go_on(d)

@pytest.mark.parametrize('k,v', [('eps',None), ('wd',''), ('mom',None), ('mom',True), ('sqr_mom',[.9])])
def test_hyper_parameters_of_another_kind_in_a_ticket(k, v, run, tmp_path):
    ts,meta = load_tensors(f := shutil.copytree(run, tmp_path/'run')/'round_01'/'ticket.safetensors')
    for o in meta['place']['hypers']: o[k] = v
    save_tensors(f, ts, meta)
    with pytest.raises(ValueError, match='hyper-parameters|label says'): train(tmp_path/'run')
