"What a callback holds goes on with a run that was stopped: plain data, what is nearly plain, objects of one's own"
import collections,contextlib,enum,os,queue,threading,types,weakref
from dataclasses import dataclass
import pytest
from wrong import *
from fastai_lottery.carried import as_plain,callback_state,from_plain,put_callback_state,put_from_file
from fastai_lottery.trust import NotPutBack
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]

class Color(enum.Enum): A,B,C,D = 0,1,2,3
class Level(enum.IntEnum): A,B,C,D = 0,1,2,3
class Number(float): pass
class Word(str): pass
Pair = collections.namedtuple('Pair', 'n m')

@dataclass
class Data:
    n:int=0
    phase:str='warm'

@dataclass(slots=True, frozen=True)
class Tight: n:int=0

class Own:
    def __init__(self): self.n,self.back = 0,self    # it holds itself

def more(o):
    o.n += 1
    return o

def more_in(d, k):
    d[k] += 1
    return d

def worded(o):
    o.phase += 'x'
    return o

def following(o): return type(o)((o.value+1)%4)

# Of each: what a callback begins with, how it moves, and a number that it is
held = dict(
    namespace=(lambda: types.SimpleNamespace(n=0), more, lambda o: o.n), data=(Data, more, lambda o: o.n),
    phase=(Data, worded, lambda o: len(o.phase)), own=(Own, more, lambda o: o.n),
    tight=(Tight, lambda o: Tight(o.n+1), lambda o: o.n),
    listed=(lambda: [Data(),print], lambda o: [more(o[0]),print], lambda o: o[0].n),
    within=(lambda: {'a':Data()}, lambda o: {'a':more(o['a'])}, lambda o: o['a'].n),
    mixed=(lambda: {'a':0,'f':print}, lambda o: more_in(o, 'a'), lambda o: o['a']),
    pair=(lambda: Pair(0, 1), lambda o: o._replace(n=o.n+1), lambda o: o.n),
    keys=(lambda: {(1,2):0,.5:1,None:2}, lambda o: more_in(o, (1,2)), lambda o: o[1,2]),
    frozen=(frozenset, lambda o: o|{len(o)}, len), bytes_=(bytes, lambda o: o+b'\xff', len),
    array=(bytearray, lambda o: o+b'a', len),
    complex_=(complex, lambda o: o+1j, lambda o: o.imag), range_=(lambda: range(0), lambda o: range(len(o)+1), len),
    choice=(lambda: Color.A, following, lambda o: o.value), level=(lambda: Level.A, following, lambda o: o.value),
    number=(Number, lambda o: Number(o+1), float), word=(Word, lambda o: Word(o+'a'), len),
    texts=(lambda: np.array(['']), lambda o: np.array([o[0]+'a']), lambda o: len(o[0])),
    big=(lambda: np.zeros(1,'>i8'), lambda o: (o+1).astype('int64'), lambda o: o[0]),
    counter=(collections.Counter, lambda o: more_in(o, 'a'), lambda o: o['a']),
    long=(lambda: 10**40, lambda o: o+1, lambda o: o-10**40))

class Holds(Callback):
    "Moves the loss by what it holds"
    def __init__(self, what):
        make,self.step,self.number = held[what]
        self.has = make()
    def before_batch(self):
        if self.training: self.has = self.step(self.has)
    def after_loss(self): self.learn.loss_grad = self.loss_grad*(1+float(self.number(self.has))/1000)

class InSlots(Holds): __slots__ = ('has',)

def play(d, cb, halt=None):
    torch.manual_seed(0)
    Halt.at = halt
    learn = Learner(loaders(), model(), loss_func=CrossEntropyLossFlat(), cbs=[LotteryCallback(), cb, Halt()])
    with learn.no_bar(), learn.no_logging(): learn.fit_lottery(3, 1, fit=Learner.fit, lr=.01, seed=0, path=d)
    return learn.lottery.report(full=True).drop(columns='seconds')

@pytest.mark.parametrize('c,what', [*((Holds,o) for o in held), (InSlots,'long'), (InSlots,'own')])
def test_a_run_goes_on_with_what_a_callback_holds(c, what, tmp_path):
    whole = play(tmp_path/'whole', c(what))
    for at in (0,1):
        with contextlib.suppress(KeyboardInterrupt): play(tmp_path/f'stopped_{at}', c(what), at)
        assert play(tmp_path/f'stopped_{at}', c(what)).equals(whole)

def test_what_no_file_holds_is_left_as_it_is():
    cb = Holds('own')
    cb.logs,cb.data,cb.set,cb.some = [print],{'f':print},{print,1},L(1,print)
    assert not {'logs','data','set','some','step','learn'}&callback_state(cb).keys()
    cb.knot,cb.ring,cb.depth = {'n':1},[],deep(900)
    cb.knot.update(me=cb.knot, you=cb.knot)
    cb.ring += [cb.ring,cb.ring]
    assert callback_state(cb)['knot']=={'#part':{'n':1}} and not {'ring','depth'}&callback_state(cb).keys()
    sparse = torch.eye(2).to_sparse()
    cb.sparse = sparse
    put_callback_state(cb, callback_state(cb))
    assert cb.sparse is sparse and cb.has.back is cb.has

def test_a_callback_of_odd_things_goes_on(tmp_path):
    "Handles, locks, threads, generators, what holds itself: they stay, and what counts goes on"
    class Odd(Holds):
        def __init__(self):
            super().__init__('own')
            self.file,self.lock,self.thread = open(tmp_path/'x', 'w'),threading.Lock(),threading.current_thread()
            self.iter,self.gen,self.module,self.type,self.ref = iter([1]),(o for o in 'ab'),os,Path,weakref.ref(self)
            self.me,self.view,self.error,self.queue,self.path = [self],memoryview(b'ab'),ValueError('x'),queue.Queue(),tmp_path
            self.knot = {}
            self.knot['me'] = self.knot
        @property
        def prop(self): raise RuntimeError('nobody asked')
    whole = play(tmp_path/'whole', Odd())
    with contextlib.suppress(KeyboardInterrupt): play(tmp_path/'run', Odd(), 1)
    assert play(tmp_path/'run', Odd()).equals(whole)

def test_a_word_that_was_given_and_moved_is_not_lost_in_silence(tmp_path):
    class Phased(Callback):
        def __init__(self, phase='warm', where='a/b'): self.phase,self.where = phase,where
        def after_epoch(self): self.phase,self.where = 'cold','c/d'
    with contextlib.suppress(KeyboardInterrupt): play(tmp_path, Phased(), 1)
    with pytest.raises(ValueError, match="Phased.phase is 'warm', as it was given .* had become 'cold'.*another name"):
        play(tmp_path, Phased())

def test_an_object_that_is_not_there_yet_is_told_to_who_uses_it():
    class Late(Callback): has = None
    cb = Late()
    put_from_file(cb, dict(has={'#vars':dict(n=1)}, pair={'#tuple':[1,2]}))
    for use in (lambda: cb.has+1, lambda: cb.has>1, lambda: cb.pair[0], lambda: bool(cb.has), lambda: cb.has.n):
        with pytest.raises(NotPutBack, match='Late.(has|pair) is made in a fit'): use()

def test_texts_of_files_in_what_is_nearly_plain():
    "Bytes, words of a class of one's own and names of an array may name a file as well as text"
    class Mine(Callback):
        def __init__(self): self.a,self.b,self.c,self.d = b'x',Word('x'),np.array(['x']),Data()
    for bad in ('../x','.bashrc','net.pkl','C:x'):
        cb = Mine()
        put_from_file(cb, dict(a={'#bytes':bad}, b={'#like':bad}, c={'#texts':[bad]}, d={'#vars':dict(phase=bad)}))
        for use in (lambda: len(cb.a), lambda: len(cb.b), lambda: len(cb.c), lambda: len(cb.d.phase)):
            with pytest.raises(NotPutBack, match='is text that could name a file'): use()

bad = dict(like='a', enum='Z', tuple=3, complex='x', range=[1], items=[1], bytes=3, part=3, places=(1,{7:1}),
           vars=3, set=[[1]],
           stack=1, array=1, deque=[1], frozenset=2, L=1, texts={})
@pytest.mark.parametrize('tag', bad)
def test_wrong_content_under_a_tag_is_one_error(tag):
    v = {f'#{tag}':bad[tag]}
    for old in (None, 0, Word('a'), Color.A, Pair(1, 2), {'a':1}, Data(), [1]):
        try: from_plain(v, old)
        except Exception as e: assert type(e).__name__ in 'TypeError ValueError AttributeError NotHere IndexError'.split()
