"""Tickets and folders of earlier versions are read as they were written, and go on as those versions went on.
Their own masks say what competes, whatever later versions prune by themselves."""
import json,zipfile
import pytest
import golden,old_files

def of_zip(f):
    with zipfile.ZipFile(f) as z: return json.loads(z.read('expected.json'))

zips = {o:old_files.fixtures.with_name(o+'.zip') for o in ('old','dense')}
all_written = {o:of_zip(f) for o,f in zips.items()}
written = all_written['old']
chancy = 'late','text'      # dropout

@pytest.fixture(scope='module')
def exact(): return all(golden.is_exact(o['about']) for o in all_written.values())

@pytest.fixture
def old(request, tmp_path):
    "Name of a fixture, its folder, and what was recorded of it"
    of,name = request.param
    return name,old_files.unpack_zip(tmp_path, name, zips[of]),all_written[of]['fixtures'][name]

both = [(o,n) for o in zips for n in all_written[o]['fixtures']]
each = pytest.mark.parametrize('old', both, indirect=True, ids='-'.join)
def fails(name, diff): pytest.fail(f'{name}: {diff}', pytrace=False)

@each
def test_reads(old):
    "Nothing is computed, so every machine reads the same"
    name,d,want = old
    got = old_files.one_thread(old_files.read, name, d)
    for n,o in got.items():
        if 'meta' in o: o['meta'] = {k:v for k,v in o['meta'].items() if k in want['read'][n]['meta']}    # later versions may say more
    if diff := golden.difference(want['read'], got): fails(name, diff)

def of_today(o):
    "What was recorded, under the names of today: 'random' was a mask with as many weights in each layer"
    if isinstance(o, dict): return {k:of_today(v) for k,v in o.items()}
    return [of_today(v) for v in o] if isinstance(o, list) else 'shuffle' if o=='random' else o

@each
def test_goes_on(old, exact):
    "It ends as it did; and finished rounds are not played again, for they have their old times"
    name,d,want = old
    end = old_files.one_thread(old_files.go_on, name, d)
    same = golden.is_same if exact else golden.is_alike if name in chancy else golden.is_near
    was = of_today(want['end']) if name=='replicate' else want['end']
    if diff := golden.difference(was, end, same, () if exact else golden.hashes): fails(name, diff)
    times = old_files.seconds(d)
    assert want['seconds'].keys()<=times.keys()
    for k,was in want['seconds'].items(): assert times[k][:len(was)]==was, f'{name}: finished rounds of {k} were played again'

def test_some_old_masks_leave_out_what_may_compete():
    "A bare matrix is no part of these masks"
    for name,own in dict(bare=12*4, mixed=8*12).items(): assert written['fixtures'][name]['read']['round_00']['left']==own, name
