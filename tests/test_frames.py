"The rounds behind the pictures that move: they agree with themselves, with the stored results, and can be made again"
import json,runpy,subprocess,sys
from pathlib import Path
import numpy as np,pytest
from fastai_lottery.all import *
from fastai_lottery.experiments import play_main,with_settings

root = Path(__file__).resolve().parent.parent
made = runpy.run_path(str(root/'docs/frames.py'))
def read(kind): return json.loads((root/f'nbs/results/frames-{kind}.json').read_text(encoding='utf-8'))
def levels(s): return [v for c in s for v in divmod(made['digits64'].index(c), 8)]

@pytest.fixture(scope='module')
def weights(): return read('weights')
@pytest.fixture(scope='module')
def channels(): return read('channels')

def test_weights_are_as_many_as_in_the_stored_results(weights):
    "Seed 0 of lenet-mnist-4-epochs: as many weights in each round, accuracies within half a point: the stored bits are others"
    df,fs = stored('lenet-mnist-4-epochs'),weights['frames']
    df = df[(df.seed==0)&df.arm.isin(['dense','ticket'])].sort_values('round')
    assert [o['round'] for o in fs]==list(df['round']) and [sum(o['kept']) for o in fs]==list(df.kept)
    assert fs[0]['mask_hash']==df.mask_hash.iloc[0] and len({o['mask_hash'] for o in fs})==16
    assert np.abs(df.test_accuracy-[o['accuracy'] for o in fs]).max()<.005

def test_weights_agree_with_themselves(weights):
    "Layers, pixels and files: each says what the others say"
    sizes,fs = list(weights['layers'].values()),weights['frames']
    assert sizes==[784*300,300*100,100*10] and [o['round'] for o in fs]==list(range(16))
    for o in fs:
        ns = levels(o['pixels'])
        assert len(ns)==784 and max(ns)==7 and sum(n>0 for n in ns)==o['read']
        assert all(k<=n for k,n in zip(o['kept'], sizes))
        # The values that are left; masks take a bit a weight or less; then biases and a label
        assert 4*sum(o['kept'])<o['bytes']<4*sum(o['kept'])+sum(sizes)/8+8000
    for a,b in zip(fs, fs[1:]):
        assert all(k>=l for k,l in zip(a['kept'], b['kept'])) and a['bytes']>b['bytes'] and a['read']>=b['read']

def n_params(a, b, c):
    "Of three convolutions with batch norm, and of the layer that reads four pixels of each channel of the last one"
    return 9*(a+a*b+b*c)+2*(a+b+c)+4*c*10+10

def test_channels_agree_with_themselves(channels):
    fs = channels['frames']
    assert list(channels['layers'].values())==fs[0]['channels']==[32,64,64]
    for o in fs:
        assert o['params']==n_params(*o['channels'])
        assert 0<o['bytes']-4*o['params']<8000
        assert abs(180*o['accuracy']-round(180*o['accuracy']))<.01
    assert all(a['params']>b['params'] for a,b in zip(fs, fs[1:]))

def test_rounds_of_a_run_become_frames(tmp_path):
    "What the command writes of a short lottery is what its tickets hold"
    p = with_settings(preset('digits'), rounds=1, epochs=1)
    learn = p.learner(0)
    with learn.no_bar(), learn.no_logging(): rounds = play_main(p, learn, 0, tmp_path/'seed_00', None).rounds
    got = made['weights'](tmp_path/'seed_00')
    assert json.loads(made['text'](got))==got
    for o,r in zip(got['frames'], rounds):
        counts = r.ticket.masks['fc1.weight'].sum(0)
        assert (o['round'],o['mask_hash'])==(r.row['round'],r.ticket.masks.hash())
        assert o['accuracy']==round(r.row['test_accuracy'], 4) and sum(o['kept'])==r.row['kept']
        assert [n>0 for n in levels(o['pixels'])]==(counts>0).tolist()
        # A label says a little more of a ticket that was read
        assert abs(o['bytes']-r.ticket.save(tmp_path/'t').stat().st_size)<500

@pytest.mark.parametrize('args', [(), ('pictures',), ('weights',), ('channels','here')])
def test_the_command_says_how_it_is_called(args):
    r = subprocess.run([sys.executable,root/'docs/frames.py',*args], text=True, capture_output=True)
    assert r.returncode and 'python docs/frames.py weights RUN/seed_00' in r.stderr
