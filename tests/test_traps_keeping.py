"Traps 19, 20 and 22: keeping nets, tickets and histories"
import gc,json,math,os,pickle,shutil,warnings
from copy import deepcopy
from pathlib import Path
import pandas as pd,pytest
from safetensors.torch import save_file
import fastai_lottery.files as files
from nets import *
from test_traps_masks import dense_file
for _n in [o for o in globals() if o.startswith('test_')]: del globals()[_n]

def ones(model): return {k:torch.ones_like(v) for k,v in model.state_dict().items()}

# --- 19: state_dict keys, callbacks that save, copies

def test_trap_19_state_dict_keys_never_change(tmp_path):
    learn = learner(drop_bn, path=tmp_path)
    keys,seen = list(learn.model.state_dict()),[]
    kinds = [(type(p), p.shape) for p in learn.model.parameters()]
    class Keys(Callback):
        order,run_valid = 99,True
        def look(self):
            now = [(type(p), p.shape) for p in self.learn.model.parameters()]
            seen.append(list(self.learn.model.state_dict())==keys and now==kinds)
        before_fit = before_batch = after_pred = before_step = look
        after_step = after_epoch = after_fit = after_validate = look
    learn.add_cb(Keys())
    learn.fit(1)
    learn.prune(.5)
    learn.rewind()
    learn.fit_lottery(1, 2)
    learn.lr_find(num_it=10, show_plot=False)
    learn.unprune()
    learn.validate()
    assert len(seen)>100 and all(seen)
    assert not any('hook' in k for m in learn.model.modules() for k in m.__dict__ if k not in nn.Module().__dict__)

def test_trap_19_a_checkpoint_opens_without_us(tmp_path):
    learn = learner(path=tmp_path)
    learn.fit_lottery(1, 2)
    learn.save('m', with_opt=False)
    m = mlp()
    m.load_state_dict(torch.load(tmp_path/'models/m.pth', weights_only=True))
    assert bits(m)==bits(learn.model)

@pytest.mark.parametrize('with_opt', [False, True])
def test_trap_19_save_and_load(tmp_path, with_opt):
    learn = learner(opt_func=Adam, path=tmp_path)
    learn.fit(1)
    learn.prune(.5)
    learn.fit(1)
    was = bits(learn.model)
    learn.save('m', with_opt=with_opt)
    learn.fit(1)
    assert bits(learn.model)!=was
    learn.load('m', with_opt=with_opt)
    assert bits(learn.model)==was and learn.lottery.masks.density==.5
    learn.fit(1, cbs=(probe := Probe()))
    assert probe.bad==[] and leaks(learn)==0

class Bad(Callback):
    "Validation gets worse from epoch to epoch, and from fit to fit: the first epoch ever is the best"
    order = 55
    def __init__(self): self.n = 0
    def after_epoch(self):
        self.n += 1
        self.recorder.values[-1][1] = float(self.n)

def first_epochs(learn, n=None):
    "State after the first epoch of each fit"
    class Note(Callback):
        order = 100
        def __init__(self): self.got = []
        def after_epoch(self):
            if self.epoch==0: self.got.append(state(self.learn.model))
    learn.add_cb(c := Note())
    return c.got

@pytest.mark.parametrize('how', ['attached','as an argument'])
@pytest.mark.parametrize('reset', [True, False])
@pytest.mark.parametrize('kw', [{}, dict(with_opt=True), dict(at_end=True), dict(every_epoch=True)], ids=str)
def test_trap_19_the_best_model_never_crosses_rounds(tmp_path, reset, how, kw):
    "A peer's SaveModelCallback brings the dense net back at the end of each round"
    learn = learner(path=tmp_path, cbs=[LotteryCallback(), Bad()])
    firsts = first_epochs(learn)
    save = SaveModelCallback(reset_on_fit=reset, **kw)
    if how=='attached': learn.add_cb(save)
    rounds = learn.fit_lottery(2, 3, amount=.4, **({} if how=='attached' else dict(cbs=save)))
    assert len(firsts)==4 and leaks(learn)==0
    ws = named_weights(learn.model, learn.lottery.masks).values()
    assert [r['kept'] for r in rounds]==[288,173,104,62] and rounds[-1]['kept']==sum(int((p!=0).sum()) for p in ws)
    if not kw.get('at_end') and not kw.get('every_epoch'):
        assert bits(learn.model)==bits(firsts[-1]), 'the best of the last round, and of no other'
        assert bits(load_(mlp(), {k:v for k,v in state(learn.model).items()}))==bits(firsts[-1])
    else: assert bits(learn.model)!=bits(firsts[-1])

@pytest.mark.parametrize('reset', [True, False])
def test_trap_19_nor_where_one_plays_the_rounds_by_hand(tmp_path, reset):
    learn = learner(path=tmp_path, cbs=[LotteryCallback(), Bad(), SaveModelCallback(reset_on_fit=reset)])
    firsts = first_epochs(learn)
    learn.fit_one_cycle(2)
    for _ in range(2):
        learn.prune(.4)
        learn.rewind()
        learn.fit_one_cycle(2)
    assert leaks(learn)==0 and bits(learn.model)==bits(firsts[-1])

@pytest.mark.parametrize('how', ['attached','as an argument'])
@pytest.mark.parametrize('reset', [True, False])
def test_trap_19_early_stopping_begins_anew_in_each_round(capsys, reset, how):
    learn = learner(cbs=[LotteryCallback(), Bad()])
    stop = EarlyStoppingCallback(patience=2, reset_on_fit=reset)
    kw = {} if how=='attached' else dict(cbs=stop)
    if how=='attached': learn.add_cb(stop)
    rounds = learn.fit_lottery(6, 2, amount=.4, **kw)
    assert [r['iterations'] for r in rounds]==[12,12,12] and leaks(learn)==0     # 3 of 6 epochs
    assert len({r['density'] for r in rounds})==3

@pytest.mark.parametrize('reset', [True, False])
def test_trap_19_a_round_without_a_best_model_takes_no_other_rounds(tmp_path, reset):
    "Validation is nan throughout round 1, so that SaveModelCallback saves nothing there, and at its end loads what round 0 saved"
    learn = learner(path=tmp_path, cbs=[LotteryCallback(), SaveModelCallback(reset_on_fit=reset)])
    class Nan(Callback):
        order = 55
        def after_epoch(self):
            if len(self.learn.lottery.rounds)==1: self.recorder.values[-1][1] = math.nan
    learn.add_cb(Nan())
    finals = {}
    class Note(Callback):
        order = 58
        def after_fit(self): finals[len(self.learn.lottery.rounds)] = state(self.learn.model)
    learn.add_cb(Note())
    try: learn.fit_lottery(2, 1, amount=.4, seed=1)
    except FloatingPointError:
        assert len(learn.lottery.rounds)==1
        return
    ms = learn.lottery.masks
    zeroed = {k: torch.where(ms[k], v, 0.) if k in ms else v for k,v in finals[0].items()}
    assert bits(learn.model)!=bits(zeroed)

def test_trap_19_averaged_model():
    "torch's weight averaging copies the model, hooks and all"
    from torch.optim.swa_utils import AveragedModel,update_bn
    learn = learner(drop_bn)
    learn.fit(1)
    masks = learn.prune(.5)
    swa = AveragedModel(learn.model)
    class Swa(Callback):
        order,n = 85,0
        def after_step(self):
            swa.update_parameters(self.learn.model)
            self.n += 1
    learn.fit(2, cbs=(c := Swa()))
    assert c.n==8 and int(swa.n_averaged)==8
    ws = named_weights(swa.module, masks)
    assert all(not ws[n][~m].any() and ws[n][m].any() for n,m in masks.items())
    assert bits(swa.module)!=bits(learn.model)
    learn.model.load_state_dict(swa.module.state_dict())
    update_bn(learn.dls.train, learn.model)
    assert leaks(learn)==0
    swa.module.load_state_dict(ones(swa.module))     # the copy is nobody's
    assert (swa.module[0].weight==1).all()

def test_trap_19_ema_with_buffers():
    from torch.optim.swa_utils import AveragedModel,get_ema_multi_avg_fn
    learn = learner(drop_bn)
    masks = learn.prune(.5)
    ema = AveragedModel(learn.model, multi_avg_fn=get_ema_multi_avg_fn(.9), use_buffers=True)
    learn.fit(1)
    ema.update_parameters(learn.model)
    assert all(not p[~m].any() for p,m in zip(named_weights(ema.module, masks).values(), masks.values()))

def played(tmp_path, **kwargs):
    learn = learner(drop_bn, opt_func=Adam, path=tmp_path, **kwargs)
    learn.fit_lottery(1, 2, amount=.4, seed=1)
    return learn

def test_trap_19_deepcopy_is_a_learner_of_its_own(tmp_path):
    learn = played(tmp_path)
    was,masks = bits(learn.model),learn.lottery.masks
    copy = deepcopy(learn)
    lot = copy.lottery
    assert lot is not learn.lottery and lot.learn is copy
    assert lot.masks==masks and bits(copy.model)==was and len(lot.rounds)==3
    assert not {p.data_ptr() for p in copy.model.parameters()}&{p.data_ptr() for p in learn.model.parameters()}
    copy.prune(.5)
    copy.fit(1)
    assert leaks(copy)==0 and copy.lottery.masks!=masks
    assert bits(learn.model)==was and learn.lottery.masks==masks and len(learn.lottery.rounds)==3
    copy.unprune()
    learn.fit(1)
    assert leaks(learn)==0 and learn.lottery.masks==masks

def fill_and_hold(learn):
    for p in learn.model.parameters(): p.data.fill_(1)
    learn.lottery.hold()

acts = dict(
    hold       = fill_and_hold,
    rewind     = lambda c: c.rewind(),
    load       = lambda c: c.load(dense_file(c)),
    prune      = lambda c: c.prune(.2),
    fit        = lambda c: c.fit(1),
    lottery    = lambda c: c.fit_lottery(1,1),
    ticket     = lambda c: c.fit_ticket(c.lottery.ticket(), 1),
    state_dict = lambda c: c.model.load_state_dict(ones(c.model)))

@pytest.mark.parametrize('act', acts)
@pytest.mark.filterwarnings("ignore:Saved file doesn't contain")
def test_trap_19_deepcopy_holds_its_masks_from_the_start(tmp_path, act):
    copy = deepcopy(played(tmp_path))
    gc.collect()
    acts[act](copy)
    assert leaks(copy)==0 and copy.lottery.masks.density<1
    copy.fit(1)
    assert leaks(copy)==0

@pytest.mark.filterwarnings('ignore:.*load_learner.*')
def test_trap_19_export_and_load_learner(tmp_path):
    learn = played(tmp_path)
    was,masks = bits(learn.model),learn.lottery.masks
    preds = learn.get_preds()[0]
    dl = learn.dls.valid
    learn.dls.new_empty = lambda: learn.dls       # these rows know nothing of empty copies
    learn.export('l.pkl')
    other = load_learner(tmp_path/'l.pkl')
    assert bits(other.model)==was and other.lottery.masks==masks and len(other.lottery.rounds)==0
    assert torch.equal(other.get_preds(dl=dl)[0], preds)
    assert leaks(other)==0
    other.dls = learn.dls
    other.fit(1)
    assert leaks(other)==0 and other.lottery.masks==masks
    assert bits(learn.model)==was and learn.lottery.masks==masks and leaks(learn)==0
    learn.fit(1)
    assert leaks(learn)==0

def test_trap_19_the_model_alone_can_be_pickled_and_copied(tmp_path):
    learn = played(tmp_path)
    f = tmp_path/'m.pt'
    torch.save(learn.model, f)
    m = torch.load(f, weights_only=False)
    assert bits(m)==bits(deepcopy(learn.model))==bits(learn.model)
    assert f.stat().st_size < 2*len(pickle.dumps(learn.model.state_dict()))+8000, 'no Learner should hide in the model'
    for o in (m, deepcopy(learn.model)):
        o.load_state_dict(ones(o))
        assert (o[0].weight==1).all()

# --- 20: tickets

@pytest.fixture(scope='module')
def ticket(tmp_path_factory):
    learn = learner(drop_bn)
    learn.fit_lottery(1, 2, amount=.3, seed=1)
    return learn.lottery.ticket()

@pytest.fixture
def saved(ticket, tmp_path): return ticket.save(tmp_path/'t')

def refused(path, msg='damaged|format|no ticket|digest', learn=None):
    "Loading is a ValueError with a clear message, whoever asks"
    with pytest.raises(ValueError, match=msg) as e: Ticket.load(path)
    assert str(path) in str(e.value)

def known(t):
    "What a file of survivors only has of the ticket `t`: its starting weights, but those of what is pruned"
    return {k:w[t.masks[k]] if k in t.masks else w for k,w in t.weights.items()}

def test_trap_20_a_file_has_the_survivors(ticket, saved, tmp_path):
    "What pruned ones started from is not there, and is no 0; the net that it makes is the same"
    t = Ticket.load(saved)
    assert ticket.dense and not t.dense and t.masks==ticket.masks and t.digest()==ticket.digest()
    assert bits(known(t))==bits(known(ticket))
    assert all(t.weights[n][~m].isnan().all() for n,m in t.masks.items())
    assert {k:v for k,v in t.meta.items() if k in ticket.meta}==ticket.meta
    assert bits(t.apply_(drop_bn()))==bits(ticket.apply_(drop_bn()))
    u = Ticket.load(t.save(tmp_path/'u'))
    assert bits(u.weights)==bits(t.weights) and u.meta==t.meta
    with pytest.raises(ValueError, match=r'survivors only.*save\(path, dense=True\)'): t.save(tmp_path/'v', dense=True)

def test_trap_20_round_trip_is_exact(ticket, saved, tmp_path):
    t = Ticket.load(ticket.save(saved, dense=True))
    assert t.dense and t.digest()==ticket.digest() and t.digest(dense=True)==ticket.digest(dense=True)
    assert t.masks==ticket.masks and list(t.masks)==list(ticket.masks) and bits(t.weights)==bits(ticket.weights)
    assert all(t.meta[k]==v for k,v in ticket.meta.items())
    assert t.meta['density']==t.masks.density and t.meta['kept']==t.masks.n_kept
    u = Ticket.load(t.save(tmp_path/'u.safetensors', dense=True))
    assert u.masks==t.masks and bits(u.weights)==bits(t.weights) and u.meta==t.meta
    assert saved.name=='t.safetensors' and saved.stat().st_mode&0o777==0o666&~files._umask

def test_trap_20_any_dtype_survives(tmp_path):
    dtypes = torch.float64,torch.float32,torch.float16,torch.bfloat16,torch.int64,torch.uint8,torch.bool
    ws = {str(d)[6:]: torch.arange(6).reshape(2,3).to(d) for d in dtypes}
    ws['scalar'],ws['empty'],ws['strided'] = torch.tensor(3.),torch.zeros(0,3),torch.arange(12.).reshape(3,4).t()
    t = Ticket(Masks(dict(float32=torch.tensor([[1,0,1],[0,0,1]]).bool())), ws, dict(n=1, s='é', l=[1,2], none=None))
    part = dict(ws, float32=torch.tensor([[0,math.nan,2],[math.nan,math.nan,5]]))
    for dense,k,v in [(True,*o) for o in ws.items()]+[(False,*o) for o in part.items()]:
        u = Ticket.load(t.save(tmp_path/'t', dense=dense))
        w = u.weights[k]
        v,w = (v.nan_to_num(-1),w.nan_to_num(-1)) if v.is_floating_point() else (v,w)
        assert torch.equal(w, v) and w.dtype==v.dtype and w.shape==v.shape
    assert {k:u.meta[k] for k in t.meta}==t.meta

def test_trap_20_what_trains_beside_the_model_goes_along(ticket, saved, tmp_path):
    "A learned loss, say; tickets of before have none"
    assert Ticket.load(saved).beside is None
    assert not [n for n in files.load_tensors(saved)[0] if n.startswith('beside/')]
    beside = {'loss_func.weight':torch.tensor([1.,2.]), 'loss_func.0.net.bias':torch.tensor(3.).half()}
    t = Ticket(ticket.masks, ticket.weights, ticket.meta, None, beside)
    u = Ticket.load(t.save(tmp_path/'u'))
    assert bits(u.beside)==bits(beside) and bits(known(u))==bits(known(ticket)) and u.masks==ticket.masks
    assert u.held is None
    assert bits(u.apply_(drop_bn()))==bits(ticket.apply_(drop_bn())), 'the model has none of it'
    assert Ticket.load(Ticket(ticket.masks, ticket.weights, {}, None, {}).save(tmp_path/'v')).beside is None

def test_trap_20_a_file_of_the_first_version(ticket, tmp_path):
    "Masks, weights and label, as version 0.0.1 wrote them; and what is written today says nothing else"
    f = files.save_tensors(tmp_path/'t', parts(ticket), label(ticket))
    t = Ticket.load(f)
    assert t.masks==ticket.masks and bits(t.weights)==bits(ticket.weights) and t.held is None and t.beside is None
    meta,now = files.read_label(f),files.read_label(ticket.save(tmp_path/'u'))
    assert now.pop('packed').keys()=={'kept','pruned','same','shapes','start','survivors'} and meta==now

def test_trap_20_a_ticket_in_one_line_of_text(ticket):
    m = ticket.masks
    assert repr(ticket)==f'Ticket(round 2: {m.n_kept} of 288 weights, density {m.density:.4g}, rewind_to init)'
    big = Masks({'w':torch.arange(2000)<500})
    assert repr(Ticket(big, {'w':torch.ones(2000)}))=='Ticket(500 of 2,000 weights, density 0.25)'
    odd = repr(Ticket(big, {'w':torch.ones(2000)},
                      dict(round='\x1b[31m', rewind_to='2ep\n', how='x'*1000, cbs='y'*1000)))
    assert odd=="Ticket(round \\x1b[31m: 500 of 2,000 weights, density 0.25, rewind_to 2ep\\n, how "+'x'*57+'...)'

def test_trap_20_masks_start_and_trained_weights_are_three_things(ticket):
    learn = learner(drop_bn, seed=5)
    start = bits(learn.model)
    learn.fit_lottery(1, 1, amount=.3, seed=1)
    t = learn.lottery.ticket()
    assert bits(t.weights)==start, 'the starting weights, dense'
    assert bits(t.weights)!=bits(learn.model)
    assert all(t.weights[n][~m].any() for n,m in t.masks.items())

def test_trap_20_no_pickle_in_loading(saved, monkeypatch):
    def no(*args, **kwargs): raise AssertionError('pickle')
    for mod,f in ((pickle,'load'),(pickle,'loads'),(torch,'load'),(pickle,'Unpickler')): monkeypatch.setattr(mod, f, no)
    Ticket.load(saved)
    assert 'pickle' not in Path(files.__file__).read_text().replace('no pickle','')

def test_trap_20_a_pickle_is_refused(tmp_path):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'hacked'),)
    for save in (lambda f: f.write_bytes(pickle.dumps(Evil())), lambda f: torch.save(Evil(), f)):
        f = tmp_path/'x.safetensors'
        save(f)
        refused(f)
    assert not (tmp_path/'hacked').exists()

def test_trap_20_truncated_files(saved):
    raw = saved.read_bytes()
    n = len(raw)
    for k in {0,1,7,8,9,100,n//2,n-1,n-2,n-8,*range(0,n,n//97)}:
        saved.write_bytes(raw[:k])
        refused(saved)
    saved.write_bytes(raw+b'x')
    refused(saved)
    saved.write_bytes(b'\0'*n)
    refused(saved)
    saved.write_bytes(raw)
    Ticket.load(saved)

def test_trap_20_flipped_bits(saved):
    raw = saved.read_bytes()
    head = 8+int.from_bytes(raw[:8],'little')
    rng = random.Random(0)
    for i in [*range(0,8), *range(8,head,9), *rng.sample(range(head,len(raw)), 150)]:
        for b in (range(8) if i<8 else rng.sample(range(8),1)):
            saved.write_bytes(raw[:i]+bytes([raw[i]^1<<b])+raw[i+1:])
            refused(saved)
    saved.write_bytes(raw)
    Ticket.load(saved)

def test_trap_20_other_files(ticket, saved, tmp_path):
    f = tmp_path/'o.safetensors'
    save_file({'a':torch.ones(3)}, f)
    refused(f, 'format')
    save_file({f'mask/{n}':m for n,m in ticket.masks.items()}, f, dict(format='pt'))
    refused(f, 'format')
    files.save_tensors(f, state(mlp()), dict(round=1))
    refused(f, 'no ticket')
    files.save_tensors(f, {}, {})
    refused(f, 'no ticket')
    for junk in b'', b'{}', b'not a ticket at all', os.urandom(4096):
        f.write_bytes(junk)
        refused(f)
    with pytest.raises(FileNotFoundError, match='nowhere'): Ticket.load(tmp_path/'nowhere')
    (tmp_path/'d.safetensors').mkdir()
    with pytest.raises((ValueError, OSError), match='d.safetensors'): Ticket.load(tmp_path/'d')

def parts(t): return {**{f'mask/{n}':m for n,m in t.masks.items()}, **{f'weight/{n}':w for n,w in t.weights.items()}}
def label(t):
    m = t.masks
    return {**t.meta, 'names':list(m), 'kept':m.n_kept, 'prunable':m.numel, 'density':t.density, 'mask_hash':m.hash()}
def without(d, key): return {k:v for k,v in d.items() if k!=key}

lies = dict(kept=3),dict(density=.01),dict(prunable=7),dict(mask_hash='0'*16),dict(mask_hash=None)
@pytest.mark.parametrize('lie', lies, ids=str)
def test_trap_20_the_label_is_what_was_measured(ticket, tmp_path, lie):
    "A file whose label differs from its masks is refused, even where its digest is right"
    f = files.save_tensors(tmp_path/'t', parts(ticket), label(ticket))
    assert Ticket.load(f).masks==ticket.masks
    refused(files.save_tensors(f, parts(ticket), {**label(ticket), **lie}), 't.safetensors')

@pytest.mark.parametrize('key', ['names','kept','mask_hash'])
def test_trap_20_a_label_without_a_part_is_refused(ticket, tmp_path, key):
    refused(files.save_tensors(tmp_path/'t', parts(ticket), without(label(ticket), key)), 't.safetensors')

def test_trap_20_masks_of_another_kind_or_shape_are_refused(ticket, tmp_path):
    n = list(ticket.masks)[0]
    for m in (ticket.masks[n].float(), ticket.masks[n][:3], ticket.masks[n].t().contiguous()):
        refused(files.save_tensors(tmp_path/'t', {**parts(ticket), f'mask/{n}':m}, label(ticket)), 'mask')
    refused(files.save_tensors(tmp_path/'t', without(parts(ticket), f'weight/{n}'), label(ticket)), 'mask is for')

others = dict(
    wider       = lambda: nn.Sequential(nn.Linear(8,13), *list(drop_bn())[1:]),
    shorter     = lambda: drop_bn()[:8],
    longer      = lambda: nn.Sequential(*drop_bn(), nn.Linear(4,4)),
    no_bias     = lambda: nn.Sequential(*list(drop_bn())[:-1], nn.Linear(12,4,bias=False)),
    conv        = conv_bn,
    more_inputs = lambda: nn.Sequential(nn.Linear(9,12), *list(drop_bn())[1:]),
    transposed  = lambda: nn.Sequential(*list(drop_bn())[:-1], nn.Linear(4,12)),
    no_bn       = mlp)

@pytest.mark.parametrize('other', others)
def test_trap_20_another_architecture_is_refused_and_untouched(ticket, other):
    learn = learner(others[other])
    was = bits(learn.model)
    m = learn.model
    for f in (lambda: ticket.apply_(m), lambda: ticket.check(m), lambda: learn.fit_ticket(ticket, 1)):
        with pytest.raises(ValueError, match=r"ticket.*'\d\.\w+'|ticket's"): f()
        assert bits(learn.model)==was
    assert learn.lottery.masks is None and learn.opt is None

def kept_of(learn):
    lot = learn.lottery
    return bits(learn.model),lot.masks.hash(),bits(lot.w_i),bits(lot.w_k),len(lot.rounds)

their_data = dict(no_bn={}, longer={}, no_bias={}, shorter=dict(classes=12), conv=dict(shape=(1,6,6)),
                  more_inputs=dict(shape=(9,)))
@pytest.mark.parametrize('other,kw', their_data.items(), ids=their_data)
def test_trap_20_a_learner_in_the_middle_of_a_lottery_is_untouched(ticket, other, kw):
    learn = learner(others[other], data(**kw))
    learn.fit_lottery(1, 1)
    was = kept_of(learn)
    with pytest.raises(ValueError, match="ticket"): learn.fit_ticket(ticket, 1)
    assert kept_of(learn)==was

def test_trap_20_masks_that_do_not_fit_are_refused():
    learn = learner()
    learn.prune(.3)
    was = bits(learn.model)
    for d in ({'0.weight':torch.ones(3,3).bool()}, {'nope':torch.ones(3).bool()}):
        for f in (Masks(d).apply_, lambda m: learn.lottery.set_masks(Masks(d))):
            with pytest.raises(ValueError, match="'(0.weight|nope)'"): f(learn.model)
    with pytest.raises(TypeError, match='bool'): Masks({'0.weight':torch.ones(12,8)})
    assert bits(learn.model)==was and learn.lottery.masks.n_kept==288-86

def test_trap_20_a_ticket_in_one_line(ticket, saved):
    m = Ticket.load(saved).apply_(drop_bn())
    assert bits(m)==bits(under(ticket.weights, ticket.masks))

class Killed(BaseException): "As if the process ended here"

@pytest.mark.parametrize('at', ['write','fsync','chmod','replace','open'])
@pytest.mark.parametrize('ex', [Killed, KeyboardInterrupt, OSError], ids=lambda o: o.__name__)
def test_trap_20_written_whole_or_not_at_all(ticket, saved, tmp_path, monkeypatch, at, ex):
    "Whatever stops a save leaves the good file as it was, and nothing beside it"
    raw = saved.read_bytes()
    def stop(*args, **kwargs):
        raise ex(28, 'no space left') if ex is OSError else ex()
    if at=='open': monkeypatch.setattr(files, 'open', stop, raising=False)
    elif at=='write': monkeypatch.setattr(files, 'pieces', stop)    # after the header, before the tensors
    else: monkeypatch.setattr(os, at, stop)
    other = Ticket(Masks.ones({n:ticket.weights[n] for n in ticket.masks}), ticket.weights, dict(round=9))
    with pytest.raises(ex): other.save(saved)
    monkeypatch.undo()
    assert saved.read_bytes()==raw and [p.name for p in tmp_path.iterdir()]==[saved.name]
    assert Ticket.load(saved).masks==ticket.masks
    other.save(saved)
    assert Ticket.load(saved).meta['round']==9 and len(list(tmp_path.iterdir()))==1

def test_trap_20_flushed_before_it_takes_the_place(ticket, tmp_path, monkeypatch):
    seen = []
    fs,rep = os.fsync,os.replace
    monkeypatch.setattr(os, 'fsync', lambda fd: (seen.append('fsync'), fs(fd))[1])
    monkeypatch.setattr(os, 'replace', lambda a,b: (seen.append('replace'), Ticket.load(_as_ticket(a)), rep(a,b))[2])
    def _as_ticket(a):
        shutil.copy(a, o := tmp_path/'copy.safetensors')
        return o
    ticket.save(tmp_path/'t')
    assert seen[:2]==['fsync','replace']

@pytest.mark.skipif(os.name!='posix' or not hasattr(os,'fork'), reason='needs fork')
def test_trap_20_killed_for_real(ticket, saved, tmp_path):
    "A process that is killed in the middle of a save: the good file stays"
    import signal
    raw = saved.read_bytes()
    pid = os.fork()
    if pid==0:
        files.pieces = lambda t: os.kill(os.getpid(), signal.SIGKILL)    # after the header, before the tensors
        try: ticket.save(saved)
        finally: os._exit(1)
    assert os.waitpid(pid, 0)[1]==signal.SIGKILL
    assert saved.read_bytes()==raw and Ticket.load(saved).masks==ticket.masks

def test_trap_20_a_folder_that_cannot_be_written(ticket, tmp_path):
    (tmp_path/'f').write_text('a file')
    with pytest.raises(OSError, match="cannot write.*t.safetensors"): ticket.save(tmp_path/'f'/'t')

# --- 22: history

def test_trap_22_the_history_of_all_rounds_is_ours(tmp_path):
    "fastai's Recorder keeps only the last fit"
    learn = learner(cbs=[LotteryCallback(), lrs := Lrs()], path=tmp_path)
    rounds = learn.fit_lottery(2, 3, amount=.3, seed=2, eval_every=2)
    df = learn.lottery.report(full=True)
    assert isinstance(df, pd.DataFrame) and list(df['round'])==[0,1,2,3] and df.density.is_monotonic_decreasing
    cols = 'train_loss valid_loss accuracy kept prunable iterations seconds es_iteration es_valid_loss es_accuracy mask_hash'
    assert set(cols.split()) <= set(df)
    assert len(learn.recorder.values)==2 and df.valid_loss.nunique()==4
    for r in rounds:
        assert list(r.curve.iteration)==[2,4,6,8] and r.curve.valid_loss.iloc[-1]==pytest.approx(r['valid_loss'])
        i = r.curve.valid_loss.idxmin()
        assert (r['es_iteration'],r['es_valid_loss'])==(r.curve.iteration[i],r.curve.valid_loss[i])
    for k in range(4): assert learn.lottery.ticket(k).masks==rounds[k].masks and rounds[k].masks.hash()==df.mask_hash[k]
    learn.fit(1)
    learn.validate()
    assert learn.lottery.report(full=True).equals(df)

def test_trap_22_no_round_is_rewritten_by_a_later_one():
    learn,seen = learner(),[]
    def all_of(rounds): return [(dict(r.row), r.masks.hash(), digest(r.start)) for r in rounds]
    class Note(Callback):
        def before_fit(self): seen.append(all_of(self.learn.lottery.rounds))
    learn.add_cb(Note())
    rounds = learn.fit_lottery(1, 3, amount=.3)
    last = all_of(rounds)
    assert [len(o) for o in seen]==[0,1,2,3] and all(o==last[:len(o)] for o in seen)

def test_trap_22_asking_for_a_round_that_is_not_there():
    learn = learner()
    with pytest.raises(ValueError, match='no rounds yet'): learn.lottery.ticket()
    with pytest.raises(ValueError, match='no rounds yet'): learn.lottery.best()
    learn.fit_lottery(1, 1)
    with pytest.raises(ValueError, match='no round 7; rounds are 0 to 1'): learn.lottery.ticket(7)
