"""widthsearch: how wide should each layer be?"""
