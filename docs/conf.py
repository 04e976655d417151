"Sphinx's settings; docs/build.py runs it"
import ast,importlib.util,re
from pathlib import Path
from docutils import nodes
from fastcore.foundation import L
from latex2mathml.converter import convert
from nbdev.config import get_config
from nbdev.doclinks import patch_name
from sphinx.util import logging

cfg = get_config()
project,author,release = cfg.title,cfg.author,cfg.version
copyright = f'2026, {author}'
extensions = ['myst_nb','sphinx.ext.viewcode','sphinx_copybutton','sphinx_design','sphinx_togglebutton']
nb_execution_mode = 'off'                       # the outputs are those stored in the notebooks
nb_render_markdown_format = 'myst'
nb_ipywidgets_js = {}                           # these would come from other hosts
myst_enable_extensions = ['colon_fence','dollarmath','attrs_inline','attrs_block','fieldlist','deflist','linkify']
myst_heading_anchors = 4
myst_update_mathjax = False
html_math_renderer = 'mathml'                   # no script, no fonts, nothing to fetch
viewcode_follow_imported_members = False       # `source` below says where things are
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 60
nitpicky = True                                 # a link to one of our symbols that no page documents is an error
nitpick_ignore_regex = [('py:.*', rf'(?!{cfg.lib_name}\.).*')]
smartquotes_action = 'De'
togglebutton_hint = togglebutton_hint_hide = ''
html_theme = 'furo'
html_title = cfg.title
html_static_path = ['_static']
html_css_files = ['custom.css']
html_js_files = [(o, {'defer':'defer'}) for o in ('nav.js','ticket.js','more.js')]
html_search_scorer = str(Path(__file__).with_name('search.js'))    # what comes first, and excerpts of prose
html_show_sphinx = False
html_copy_source = False
html_theme_options = dict(navigation_with_keys=True,
    light_css_variables={'color-brand-primary':'#0b6e4f', 'color-brand-content':'#0b6e4f'},
    dark_css_variables={'color-brand-primary':'#5fd3a6', 'color-brand-content':'#5fd3a6'})

def mathml(display):
    "A visitor that writes a formula as MathML; a command that it does not know is a warning, so an error"
    def visit(self, node):
        try: s = convert(node.astext(), display=display)
        except Exception as e: s,bad = '', f'{type(e).__name__} {e}'
        else: bad = (re.search(r'<m\w+[^>]*>(\\[A-Za-z]+)<', s) or [0,''])[1]
        log = logging.getLogger(__name__)
        if bad: log.warning('math: latex2mathml cannot read %s in %s', bad, node.astext(), location=node)
        self.body.append(f'<div class="math">{s}</div>\n' if display=='block' else s)
        raise nodes.SkipNode
    return visit

def source(app, mod):
    "Line ranges for viewcode, with `@patch`ed functions filed under their class, and values"
    if not mod.startswith(cfg.lib_name): return
    with open(importlib.util.find_spec(mod).origin, encoding='utf-8') as f: src = f.read()
    tags,defs = {},(ast.FunctionDef,ast.AsyncFunctionDef,ast.ClassDef)
    def add(nm, o): tags[nm] = ('class' if isinstance(o,ast.ClassDef) else 'def', o.lineno, o.end_lineno)
    for o in ast.parse(src).body:
        if isinstance(o,ast.Assign) and isinstance(o.targets[0],ast.Name): add(o.targets[0].id,o)
        if not isinstance(o,defs): continue
        for nm in L(patch_name(o)): add(nm,o)
        for m in o.body if isinstance(o,ast.ClassDef) else ():
            if isinstance(m,defs): add(f'{o.name}.{m.name}',m)
    return src,tags

def setup(app):
    app.connect('viewcode-find-source', source)
    app.add_html_math_renderer('mathml', (mathml('inline'),None), (mathml('block'),None))
