"The page of promises names a test for each, and these tests are there"
import ast,json,re
from pathlib import Path
root = Path(__file__).resolve().parent.parent
page = root/'nbs'/'tutorials'/'10_what_is_promised.ipynb'

def prose():
    cells = json.loads(page.read_text(encoding='utf-8'))['cells']
    return '\n'.join(''.join(c['source']) for c in cells if c['cell_type']=='markdown')

def names_in(f):
    tree = ast.parse((root/'tests'/f).read_text(encoding='utf-8'))
    return {o.name for o in ast.walk(tree) if isinstance(o, ast.FunctionDef)}

def test_each_promise_names_a_test_that_is_there():
    named = re.findall(r'`(test_\w+\.py)::(\w+)`', prose())
    assert len(named)>20
    for f,n in named: assert n in names_in(f), f'{f}::{n}'

def test_each_line_of_what_is_promised_has_one():
    parts = prose().split('\n## ')
    for head in ('The same bits', 'What is read from a file', 'What an accident costs'):
        part = next(p for p in parts if p.startswith(head))
        items = re.split(r'\n- ', part)[1:]
        assert items and all('::' in o for o in items), head
